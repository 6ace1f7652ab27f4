"""Several sources in one file, and patterns of file names."""

import json
import tarfile

import pytest
from support.imagenet_sets import TITLES, WNIDS, image, truth, write_layout

from fastclr.cli.main import main
from pipelines.beton import BetonReader
from pipelines.convert import convert, open_source
from pipelines.convert.names_file import read_names
from pipelines.convert.patterns import expand_pattern


def tree(root, *names: str) -> str:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(image(name))
    return str(root)


def test_classes_of_one_name_are_one(tmp_path):
    first = tree(tmp_path / "first", "owl/1.jpg", "auk/2.jpg")
    second = tree(tmp_path / "second", "kea/3.jpg", "owl/4.jpg")
    flat = tree(tmp_path / "flat", "5.jpg")
    source = open_source([first, second, flat], merge=True)
    assert (source.kind, source.name) == ("merged", "first + second + flat")
    assert source.class_names == ["auk", "kea", "owl"]
    found = {source.item(k): (int(source.labels[k]), source.read(k)) for k in range(5)}
    assert found == {
        "first/auk/2.jpg": (0, image("auk/2.jpg")),
        "first/owl/1.jpg": (2, image("owl/1.jpg")),
        "second/kea/3.jpg": (1, image("kea/3.jpg")),
        "second/owl/4.jpg": (2, image("owl/4.jpg")),
        "flat/5.jpg": (-1, image("5.jpg")),
    }
    assert "second: 2 images, 2 classes" in source.remarks


def test_sources_of_one_name(tmp_path):
    paths = [tree(tmp_path / folder / "train", f"{folder}/1.jpg") for folder in ("x", "y")]
    source = open_source(paths, merge=True)
    assert [source.item(k) for k in range(2)] == ["1-train/x/1.jpg", "2-train/y/1.jpg"]


def test_labels_without_names_cannot_be_merged(tmp_path):
    folder = tree(tmp_path / "set", "a/1.jpg", "b/1.jpg")
    (tmp_path / "0.tar").write_bytes(b"")
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for name, content in (("1.jpg", image("1")), ("1.cls", b"3")):
            (tmp_path / name).write_bytes(content)
            tar.add(tmp_path / name, name)
    with pytest.raises(ValueError, match=r"0\.tar has numbers only"):
        open_source([folder, str(tmp_path / "0.tar")], merge=True)
    with pytest.raises(ValueError, match="--merge makes one set of several folders"):
        open_source([folder, folder])


def test_a_merged_conversion_with_a_sequential_source(tmp_path):
    """ImageNet's training images from parquet, and folders of some classes more."""
    root = write_layout("huggingface", tmp_path / "set")
    more = tree(tmp_path / "more", "n99999999/1.JPEG", f"{WNIDS[0]}/more.JPEG")
    out = tmp_path / "out.beton"
    assert main(["convert", f"imagenet:{root}", more, str(out), "--merge"]) == 0
    with BetonReader(out) as reader:
        assert reader.class_names == [*WNIDS, "n99999999"]
        names = read_names(out)
        assert len(names) == len(truth()["train"]) + 2
        at = names.index(f"more/{WNIDS[0]}/more.JPEG")
        assert (reader.labels[at], reader.image_bytes(at).tobytes()) == (0, image(f"{WNIDS[0]}/more.JPEG"))
    sidecar = json.loads((tmp_path / "out.json").read_text())
    assert sidecar["class_titles"] == [*(TITLES[wnid] for wnid in WNIDS), "n99999999"]


@pytest.mark.parametrize(
    ("pattern", "paths"),
    [
        ("a.tar", ["a.tar"]),
        ("t-{08..11}.tar", ["t-08.tar", "t-09.tar", "t-10.tar", "t-11.tar"]),
        ("t-{9..11}.tar", ["t-9.tar", "t-10.tar", "t-11.tar"]),
        ("{2..0}", ["2", "1", "0"]),
        ("{a,b}-{0..1}", ["a-0", "a-1", "b-0", "b-1"]),
        ("{a}x{", ["{a}x{"]),
        ("x{}", ["x{}"]),
    ],
)
def test_braces(pattern, paths):
    assert expand_pattern(pattern) == paths


@pytest.mark.parametrize("pattern", ["{0..100000}", "{0..99999999999999}", "{0..999}{0..999}"])
def test_too_many_names(pattern):
    with pytest.raises(ValueError, match="100,000"):
        expand_pattern(pattern)


def test_patterns_in_quotes(tmp_path):
    names = [tree(tmp_path, f"{k}.jpg") for k in range(12)]
    assert names
    for k in range(12):
        tree(tmp_path / "folders" / f"c{k}", "1.jpg")
    assert expand_pattern(f"{tmp_path}/*.jpg") == sorted(str(tmp_path / f"{k}.jpg") for k in range(12))
    assert expand_pattern(f"{tmp_path}/[1-3].jpg") == [str(tmp_path / f"{k}.jpg") for k in (1, 2, 3)]
    assert expand_pattern(f"{tmp_path}/{{1,?}}.jpg")[:2] == [str(tmp_path / f"{k}.jpg") for k in (1, 0)]
    (tmp_path / "x[1].tar").touch()
    assert expand_pattern(f"{tmp_path}/x[1].tar") == [f"{tmp_path}/x[1].tar"], "a file of this name"
    with pytest.raises(FileNotFoundError, match="no file or folder has a name of this pattern"):
        open_source([f"{tmp_path}/*.tar.gone"])
    with pytest.raises(FileNotFoundError, match=r"y-000\.tar: no such folder or file"):
        open_source([f"{tmp_path}/y-{{000..003}}.tar"])


def test_shards_by_pattern(tmp_path):
    for k in range(3):
        with tarfile.open(tmp_path / f"t-{k:03}.tar", "w") as tar:
            for name, content in ((f"{k}.jpg", image(str(k))), (f"{k}.cls", b"%d" % k)):
                (tmp_path / name).write_bytes(content)
                tar.add(tmp_path / name, name)
    report = convert(open_source([f"{tmp_path}/t-{{000..002}}.tar"]), tmp_path / "a.beton", order="source")
    assert report.written == 3
    assert read_names(tmp_path / "a.beton") == ["t-000.tar/0.jpg", "t-001.tar/1.jpg", "t-002.tar/2.jpg"]
