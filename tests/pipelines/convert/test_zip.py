"""Zips of folders, made by Python's zipfile; and those that lie or are corrupt."""

import json
import struct
import zipfile
from pathlib import Path

import pytest
from support.imagenet_sets import image
from support.sources import content

from fastclr.cli.main import main
from pipelines.convert import open_source


def make_zip(path: Path, *members: str | tuple[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> str:
    """Each member's content is its name, or what is given."""
    with zipfile.ZipFile(path, "w", method) as archive:
        for member in members:
            name, content = member if isinstance(member, tuple) else (member, member.encode())
            archive.writestr(name, content)
    return str(path)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_class_folders(tmp_path, method):
    names = ("set/owl/b.JPG", "set/owl/deep/c.png", "set/auk/a.jpg", "set/README", "__MACOSX/set/auk/._a.jpg")
    names += ("set/.x/1.jpg", "__MACOSX/set/x.jpg")
    source = open_source([make_zip(tmp_path / "birds.zip", "set/empty/", *names, method=method)])
    assert (source.kind, source.name, source.class_names) == ("zip", "birds.zip", ["auk", "owl"])
    assert content(source) == [("set/owl/b.JPG", 1), ("set/owl/deep/c.png", 1), ("set/auk/a.jpg", 0)]
    assert source.remarks == [
        "ignored, not image files: 1 without a suffix",
        "ignored folders: '.x', '__MACOSX'",
        "labels from folders: 'auk', 'owl'",
    ]


def test_several_zips_and_no_classes(tmp_path):
    paths = [make_zip(tmp_path / f"{k}.zip", f"c{k}/1.jpg") for k in (1, 0)]
    assert content(open_source(paths)) == [("1.zip/c1/1.jpg", 1), ("0.zip/c0/1.jpg", 0)]
    source = open_source([make_zip(tmp_path / "flat.zip", "all/1.jpg", "all/2.jpg")])
    assert source.labels.tolist() == [-1, -1]
    assert source.remarks == ["no labels: no folders that differ"]


def test_a_conversion(tmp_path):
    """A member whose name leads out of the zip, an encrypted and a corrupt one are left out by name."""
    path = tmp_path / "a.zip"
    good = [(f"{name}/{k}.jpg", image(f"{name}{k}")) for name in ("a", "b") for k in range(3)]
    bad = [("../a/evil.jpg", image("x")), ("/a/root.jpg", image("x")), ("b/secret.jpg", image("secret"))]
    make_zip(path, *good, *bad, ("b/torn.jpg", image("torn")))
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        torn = archive.getinfo("b/torn.jpg")
    data[torn.header_offset + 30 + len("b/torn.jpg") + torn.compress_size // 2] ^= 255
    set_encrypted(data, b"b/secret.jpg")
    path.write_bytes(data)
    assert main(["convert", str(path), str(tmp_path / "out.beton")]) == 0
    sidecar = json.loads((tmp_path / "out.json").read_text())
    assert sidecar["counts"]["written"] == 6
    skipped = sidecar["skipped"]
    assert skipped.pop("b/torn.jpg").startswith("corrupt in the zip")
    assert skipped == {
        "../a/evil.jpg": "its name leads out of the zip",
        "/a/root.jpg": "its name leads out of the zip",
        "b/secret.jpg": "encrypted; unpack the zip with its password, and give the folder",
    }
    before = sorted(tmp_path.iterdir())
    assert main(["convert", str(path), str(tmp_path / "stop.beton"), "--on-error", "stop"]) == 2
    assert sorted(tmp_path.iterdir()) == before


def set_encrypted(data: bytearray, name: bytes) -> None:
    """Set the bit of encryption in a member's entry of the table of contents."""
    at = data.rindex(name) - 46
    assert data[at : at + 4] == b"PK\x01\x02"
    data[at + 8] |= 1


def changed(path: Path, name: bytes, offset: int, value: bytes) -> str:
    """Overwrite a field of a member's entry in the table of contents."""
    data = bytearray(path.read_bytes())
    at = data.rindex(name) - 46 + offset
    data[at : at + len(value)] = value
    path.write_bytes(data)
    return str(path)


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [
        (20, struct.pack("<I", 1 << 20), "truncated"),
        (24, struct.pack("<I", 1 << 31), "--max-file-mb"),
        (24, struct.pack("<I", 3), "checksum"),
        (16, struct.pack("<I", 5), "checksum"),
        (42, struct.pack("<I", 7), "table of contents"),
        (10, struct.pack("<H", 14), "packed by method 14"),
        (10, struct.pack("<H", 99), "packed by method 99"),
    ],
    ids=["packed size", "size", "smaller size", "checksum", "place", "lzma", "unknown method"],
)
def test_entries_that_lie(tmp_path, offset, value, message):
    make_zip(tmp_path / "a.zip", ("a/1.jpg", b"x" * 1000), "b/2.jpg")
    source = open_source([changed(tmp_path / "a.zip", b"a/1.jpg", offset, value)])
    with pytest.raises((ValueError, OSError), match=message):
        source.read(0)
    assert source.read(1) == b"b/2.jpg"


def test_a_bomb_is_not_unpacked(tmp_path):
    """A megabyte of zeros claims to be three bytes."""
    make_zip(tmp_path / "a.zip", ("a/1.jpg", bytes(1 << 30)), "b/2.jpg")
    source = open_source([str(tmp_path / "a.zip")])
    with pytest.raises(ValueError, match="--max-file-mb"):
        source.read(0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.write_bytes(b"PK\x03\x04" + bytes(100)), "no zip, or corrupt"),
        (lambda path: path.write_bytes(b""), "no zip, or corrupt"),
        (
            lambda path: path.write_bytes(Path(make_zip(path, "a/1.jpg")).read_bytes()[:-30]),
            "no zip, or corrupt",
        ),
        (lambda path: make_zip(path, "notes.txt"), "no image in it"),
        (lambda path: make_zip(path, "1.jpg", "a/2.jpg"), "images lie beside folders"),
        (lambda path: make_zip(path, "x/train/a/1.jpg", "x/val/a/1.jpg"), "train and val look like splits"),
    ],
)
def test_a_zip_that_says_nothing_clear(tmp_path, make, message):
    make(tmp_path / "a.zip")
    with pytest.raises(ValueError, match=message) as caught:
        open_source([str(tmp_path / "a.zip")])
    assert str(caught.value).isprintable()


def test_names(tmp_path):
    """Repeated ones are all taken; backslashes of DOS are folders; what is not UTF-8 is read as zip says, cp437."""
    with pytest.warns(UserWarning, match="Duplicate name"):
        path = make_zip(tmp_path / "a.zip", "a/1.jpg", "b/1.jpg", "a/1.jpg", "ü/1.jpg")
    source = open_source([path])
    assert source.labels.tolist() == [0, 1, 0, 2]
    assert "1 images have the name of an earlier one; all are taken" in source.remarks
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        for name in ("a\\1.jpg", "b\\1.jpg"):
            info = zipfile.ZipInfo("x")
            info.filename, info.create_system = name, 0
            archive.writestr(info, b"1.jpg")
    source = open_source([str(tmp_path / "b.zip")])
    assert content(source) == [("a/1.jpg", 0), ("b/1.jpg", 1)]
