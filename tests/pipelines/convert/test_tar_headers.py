"""Headers that lie, and archives that tarfile reads in part only."""

import io
import os
import struct
import tarfile
from pathlib import Path

import pytest

from pipelines.convert import open_source
from pipelines.convert.tar_headers import MAX_EXTENSION_BYTES, TarWalk

CONTENT = b"content of an image"


def pad(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


def header(name: bytes, size: bytes, kind: bytes = b"0", magic: bytes = b"ustar\x0000") -> bytes:
    block = bytearray(512)
    block[: len(name)] = name
    block[124:136], block[156:157], block[257:265] = size.ljust(12, b"\0"), kind, magic
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def octal(size: int) -> bytes:
    return b"%011o\0" % size


def base_256(size: int) -> bytes:
    return (b"\xff" * 4 if size < 0 else b"\x80" + bytes(3)) + struct.pack(">q", size)


def member(name: bytes, content: bytes = CONTENT, kind: bytes = b"0", size: bytes = b"") -> bytes:
    return header(name, size or octal(len(content)), kind) + pad(content)


def pax(*records: bytes, kind: bytes = b"x") -> bytes:
    """A header extension; each record's length counts its own digits."""
    data = b""
    for record in records:
        length = len(record) + 2
        length += len(str(length + len(str(length))))
        data += b"%d %s\n" % (length, record)
    return member(b"pax", data, kind)


GOOD, END = member(b"a/x.jpg"), bytes(1024)


def write(path: Path, *pieces: bytes) -> str:
    path.write_bytes(b"".join(pieces))
    return str(path)


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ("pieces", "message"),
    {
        "negative": (
            (member(b"a/y.jpg", size=base_256(-512)),),
            "'a/y.jpg' at byte 1,024: its size is negative",
        ),
        "-1024": ((member(b"a/y.jpg", size=base_256(-1024)),), "a/y.jpg.*negative"),
        "-1": ((member(b"a/y.jpg", size=base_256(-1)),), "a/y.jpg.*negative"),
        "2^62": ((member(b"a/y.jpg", size=base_256(1 << 62)),), "a/y.jpg.*the file ends after"),
        "all bits": ((member(b"a/y.jpg", size=b"\xbf" + b"\xff" * 11),), "a/y.jpg.*the file ends after"),
        "sign": ((member(b"a/y.jpg", size=b"-0000000512\0"),), "a/y.jpg.*no octal number"),
        "underscore": ((member(b"a/y.jpg", size=b"1_0\0"),), "a/y.jpg.*no octal number"),
        "decimal": ((member(b"a/y.jpg", size=b"99999999999\0"),), "a/y.jpg.*no octal number"),
        "long name": ((member(b"@LongLink", b"n", b"L", base_256(1 << 40)),), "@LongLink.*extension"),
        "long target": ((member(b"@LongLink", b"n", b"K", base_256(-2000)),), "@LongLink.*negative"),
        "pax": ((member(b"p", b"n", b"x", base_256(-512)),), "'p'.*negative"),
        "long pax": ((member(b"p", b"n", b"g", octal(MAX_EXTENSION_BYTES + 1)),), "'p'.*extension"),
        "pax size": ((pax(b"size=9999999"), GOOD), "a/x.jpg.*the file ends after"),
        "pax sign": ((pax(b"size=-512"), GOOD), "a/x.jpg.*pax size"),
        "pax digits": ((pax(b"size=" + b"9" * 5000), GOOD), "a/x.jpg.*pax size"),
        "pax length 0": ((member(b"p", b"0 path=x\n", b"x"), GOOD), "'p'.*wrong length"),
        "pax length": ((member(b"p", b"9" * 19 + b" path=x\n", b"x"), GOOD), "'p'.*wrong length"),
        "pax no length": ((member(b"p", b"path=x\n", b"x"), GOOD), "'p'.*no length"),
        "pax no value": ((pax(b"path"), GOOD), "'pax'.*no value"),
        "pax alone": ((pax(b"path=x.jpg"),), "the file ends before"),
        "volume": ((member(b"a/y.jpg", kind=b"M"),), "a/y.jpg.*another volume"),
        "junk": ((b"junk" * 128,), "at byte 1,024, after 'a/x.jpg', there is no header"),
    }.values(),
)
def test_false_headers_are_refused(tmp_path, pieces, message):
    path = write(tmp_path / "bad.tar", GOOD, *pieces) if "the file ends before" in message else None
    path = path or write(tmp_path / "bad.tar", GOOD, *pieces, END)
    with pytest.raises(ValueError, match=rf"bad\.tar: corrupt tar: .*{message}") as caught:
        open_source([path])
    assert str(caught.value).isprintable()


def test_every_member_is_found_that_tarfile_finds(tmp_path):
    """In all formats: names of all lengths and letters, links, folders, empty files."""
    names = ["a/1.jpg", "n" * 100, "d" * 60 + "/" + "e" * 60, "ü/" * 90 + "ü.jpg", "x" * 300, "empty", "a/"]
    for tar_format in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        path = tmp_path / f"{tar_format}.tar"
        with tarfile.open(path, "w", format=tar_format, pax_headers={"comment": "shared"}) as tar:
            for number, name in enumerate(names):
                info = tarfile.TarInfo(name)
                info.size = 0 if name == "empty" or name.endswith("/") else 700 * number + 1
                info.type = tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE
                if tar_format == tarfile.USTAR_FORMAT and len(name.encode()) > 150:
                    continue
                tar.addfile(info, io.BytesIO(bytes(info.size)))
            for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE):
                info = tarfile.TarInfo(f"link {kind!r}")
                info.type, info.linkname = (
                    kind,
                    "a/1.jpg" if tar_format == tarfile.USTAR_FORMAT else "t" * 200,
                )
                tar.addfile(info)
        with tarfile.open(path) as tar:
            theirs = [
                (m.name, m.offset_data, m.size, m.linkname if m.islnk() or m.issym() else "") for m in tar
            ]
        with open(path, "rb") as file:
            walk = TarWalk(file, path)
            ours = [(m.name.rstrip("/"), m.offset, m.size, m.target) for m in walk]
        assert ours == theirs
        assert len(ours) > 7 and walk.has_end_marker and walk.num_archives == 1


def test_pax_records_override_the_header(tmp_path):
    """An own record wins over a shared one; an empty one cancels it; GNU's own format has no prefix."""
    shared = pax(b"path=shared.jpg", kind=b"g")
    gnu = bytearray(header(b"gnu.jpg", octal(0), magic=b"ustar  \0"))
    gnu[345:357] = b"14000000000\0"
    gnu[148:156] = b" " * 8
    gnu[148:156] = b"%06o\0 " % sum(gnu)
    pieces = [
        bytes(gnu),
        shared,
        GOOD,
        pax(b"path=own.jpg", b"size=3"),
        member(b"a/y.jpg", b"abc", size=octal(0)),
    ]
    path = tmp_path / "a.tar"
    write(path, *pieces, pax(b"path=", b"comment=x"), GOOD, END)
    with open(path, "rb") as file:
        found = [(m.name, m.size) for m in TarWalk(file, path)]
    size = len(CONTENT)
    assert found == [("gnu.jpg", 0), ("shared.jpg", size), ("own.jpg", 3), ("a/x.jpg", size)]


def test_signed_checksums(tmp_path):
    """Some old programs added signed bytes."""
    block = bytearray(member(b"\xff\xfe.jpg"))
    total = sum(block[:148]) + 8 * 32 + sum(block[156:512])
    block[148:156] = b"%06o\0 " % (total - 2 * 256)
    assert open_source([write(tmp_path / "a.tar", bytes(block), END)]).read(0) == CONTENT


def images(source) -> list[str]:
    return [source.item(k) for k in range(len(source.labels))]


@pytest.mark.parametrize("zeros", [512, 1024, 10240, 3 << 20])
def test_concatenated_archives(tmp_path, zeros):
    """`cat a.tar b.tar`: all are read, and it is said."""
    pieces = [GOOD, bytes(zeros), member(b"b/y.jpg"), bytes(zeros), member(b"a/z.jpg"), END]
    source = open_source([write(tmp_path / "both.tar", *pieces)])
    assert images(source) == ["a/x.jpg", "b/y.jpg", "a/z.jpg"]
    assert all(source.read(k) == CONTENT for k in range(3))
    assert "both.tar: 3 archives in a row, all are read" in source.remarks


def test_junk_behind_the_end(tmp_path):
    with pytest.raises(ValueError, match=r"bad\.tar: corrupt tar: at byte 2,048, .*cut the file off there"):
        open_source([write(tmp_path / "bad.tar", GOOD, END, b"signature" * 100)])


def test_a_hole_behind_the_end_is_not_read(tmp_path):
    path = write(tmp_path / "a.tar", GOOD, END)
    os.truncate(path, 1 << 40)
    assert images(open_source([path])) == ["a/x.jpg"]


def test_a_tar_without_an_end(tmp_path):
    source = open_source([write(tmp_path / "cut.tar", GOOD)])
    assert images(source) == ["a/x.jpg"]
    assert any("cut.tar has no end marker" in remark for remark in source.remarks)


def old_sparse() -> bytes:
    """A sparse member as GNU tar's own format has it, whose map takes two more blocks."""
    block = bytearray(header(b"a/holes.jpg", octal(len(CONTENT)), b"S", b"ustar  \0"))
    block[482] = 1
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    first_map = bytearray(512)
    first_map[504] = 1
    return bytes(block) + bytes(first_map) + bytes(512) + pad(CONTENT)


@pytest.mark.parametrize(
    "sparse",
    [
        old_sparse(),
        pax(b"GNU.sparse.major=1", b"GNU.sparse.name=a/holes.jpg") + member(b"GNUSparseFile.1/holes.jpg"),
        pax(b"GNU.sparse.size=99999", b"GNU.sparse.map=0,5") + member(b"a/holes.jpg"),
    ],
)
def test_sparse_members(tmp_path, sparse):
    """An item that fails by name; the others are read."""
    source = open_source([write(tmp_path / "a.tar", sparse, GOOD, END)])
    assert images(source) == ["a/holes.jpg", "a/x.jpg"]
    with pytest.raises(ValueError, match="--sparse"):
        source.read(0)
    assert source.read(1) == CONTENT


def test_a_member_that_is_too_large(tmp_path):
    path = tmp_path / "a.tar"
    size = 300 * 10**6
    write(path, GOOD, header(b"a/big.jpg", octal(size)))
    os.truncate(path, 2048 + size // 512 * 512 + 1024)
    source = open_source([str(path)])
    with pytest.raises(ValueError, match=r"300 MB, more than the 256 MB .*--max-file-mb"):
        source.read(1)
    assert source.read(0) == CONTENT
    assert len(open_source([str(path)], max_file_mb=300).read(1)) == size


def test_names_that_are_no_text(tmp_path):
    """Bytes that are not UTF-8, and escape sequences: in items, classes, notes and errors."""
    pieces = [member(b"caf\xe9/x.jpg"), member(b"\x1b[31m/y.jpg"), member(b"c/z.\xff\x1b[2J")]
    source = open_source([write(tmp_path / "a.tar", *pieces, END)])
    assert [item.encode() for item in images(source)] == [rb"caf\udce9/x.jpg", b"\x1b[31m/y.jpg"]
    assert source.class_names == ["\x1b[31m", r"caf\udce9"]
    assert source.remarks[0] == r"ignored, not image files: 1 .\udcff\x1b[2j"
    assert source.remarks[1] == r"labels from folders: '\x1b[31m', 'caf\udce9'"
    for bad in (
        [member(b"\x1b[31m\xff.jpg", size=octal(9999))],
        [member(b"1.jpg"), member(b"1.cls", b"\x1b[31m\xff")],
        [member(b"\x1b]0;\xff.jpg"), member(b"1.cls", b"1")],
        [member(b"\x1b]0;\xff.jpg"), b"\xff" * 512],
    ):
        with pytest.raises(ValueError, match=r"bad\.tar: ") as caught:
            open_source([write(tmp_path / "bad.tar", *bad, END)])
        assert str(caught.value).isprintable() and len(str(caught.value)) < 1000


def test_a_read_error_names_the_tar(tmp_path, monkeypatch):
    path = write(tmp_path / "a.tar", GOOD, END)

    def fail(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(TarWalk, "_read", fail)
    with pytest.raises(OSError, match=r"a\.tar"):
        open_source([path])
