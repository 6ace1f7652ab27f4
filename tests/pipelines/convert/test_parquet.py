"""Parquet files with images, written by pyarrow in the forms that people have."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from support.imagenet_sets import WNIDS, image, write_parquet

from fastclr.cli.main import main
from pipelines.beton import BetonReader
from pipelines.convert import Encoding, convert, open_source
from pipelines.convert.names_file import read_names

NAMES = [f"{k}.jpg" for k in range(10)]
IMAGES = [image(name) for name in NAMES]


def table(path: Path, group: int = 4, **columns: object) -> str:
    parquet.write_table(pa.table(columns), path, row_group_size=group)
    return str(path)


def structs(images: list[bytes | None], paths: list[str | None] | None = None) -> pa.Array:
    paths = paths or NAMES[: len(images)]
    rows = [{"bytes": image, "path": path} for image, path in zip(images, paths, strict=True)]
    return pa.array(rows, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))


def test_hugging_faces(tmp_path):
    """Columns, and names of classes, by the metadata."""
    write_parquet(tmp_path / "a.parquet", [(name, IMAGES[k], k % 4) for k, name in enumerate(NAMES)])
    source = open_source([str(tmp_path / "a.parquet")])
    assert (source.kind, source.name, len(source.class_names)) == ("parquet", "a.parquet", len(WNIDS))
    assert source.class_names[0] == "tench, Tinca tinca"
    assert source.labels.tolist() == [k % 4 for k in range(10)]
    for index in np.random.default_rng(0).permutation(10).tolist():
        assert source.read(index) == IMAGES[index]
        assert source.item(index) == NAMES[index]


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary_view()])
def test_columns_of_any_name(tmp_path, kind):
    columns = {
        "img": pa.array(IMAGES, pa.binary()).cast(kind),
        "fine": list("badcbadcba"),
        "coarse": [1] * 10,
    }
    try:
        path = table(tmp_path / "a.parquet", **columns)
    except pa.ArrowNotImplementedError:
        pytest.skip(f"this pyarrow does not write {kind}")
    source = open_source([path], columns="image=img,label=fine")
    assert source.class_names == ["a", "b", "c", "d"]
    assert source.labels.tolist() == [1, 0, 3, 2] * 2 + [1, 0]
    assert source.read(9) == IMAGES[9]
    assert source.item(9) == "row 9"
    assert open_source([path], columns="label=coarse").labels.tolist() == [1] * 10
    assert "no labels: no column of them (--columns label=NAME)" in open_source([path]).remarks


def test_text_as_a_dictionary(tmp_path):
    labels = pa.array(["b", None, "a", "b"]).dictionary_encode()
    source = open_source([table(tmp_path / "a.parquet", image=structs(IMAGES[:4]), label=labels)])
    assert (source.class_names, source.labels.tolist()) == (["a", "b"], [1, -1, 0, 1])
    assert "1 rows have no label" in source.remarks


def test_several_files_and_their_splits(tmp_path):
    for name, part in (("train-00000", IMAGES[:4]), ("train-00001", IMAGES[4:6]), ("test-00000", IMAGES[6:])):
        table(tmp_path / f"{name}.parquet", image=structs(part), label=[0] * len(part))
    with pytest.raises(
        ValueError, match="files of several splits; it has test, train: choose one with --split"
    ):
        open_source([str(tmp_path)])
    source = open_source([str(tmp_path)], "train")
    assert [source.read(k) for k in range(6)] == IMAGES[:6]
    assert source.item(5) == "train-00001.parquet/1.jpg"
    assert len(open_source([str(tmp_path / "*.parquet")]).labels) == 10
    with pytest.raises(ValueError, match="no files of the split 'val'"):
        open_source([str(tmp_path)], "val")


@pytest.mark.parametrize("order", ["shuffled", "source"])
@pytest.mark.parametrize("encoding", [Encoding(), Encoding(jpeg="lossless"), Encoding(mode="raw")])
def test_the_file_is_that_of_the_same_images_in_a_folder(tmp_path, order, encoding):
    """Read row group by row group, and put into the order of the file: the same bytes, and no file left over."""
    images = [image(f"x{k}") for k in range(200)]
    (tmp_path / "folder").mkdir()
    for k, data in enumerate(images):
        (tmp_path / "folder" / f"{k:03}.jpg").write_bytes(data)
    names = [f"{k:03}.jpg" for k in range(200)]
    path = table(tmp_path / "a.parquet", group=7, image=structs(images, names))
    folder = convert(open_source([str(tmp_path / "folder")]), tmp_path / "a.beton", encoding, order=order)
    report = convert(open_source([path]), tmp_path / "b.beton", encoding, order=order, workers=3)
    assert (tmp_path / "a.beton").read_bytes() == (tmp_path / "b.beton").read_bytes()
    assert read_names(tmp_path / "a.beton") == read_names(tmp_path / "b.beton")
    assert (report.kept, report.transcoded, report.re_encoded) == (
        folder.kept,
        folder.transcoded,
        folder.re_encoded,
    )
    assert not list(tmp_path.glob(".*"))


def test_row_groups_are_read_once(tmp_path, monkeypatch):
    read, original = [], parquet.ParquetFile.read_row_group

    def counting(self, number, *arguments, **options):
        read.append(number)
        return original(self, number, *arguments, **options)

    monkeypatch.setattr(parquet.ParquetFile, "read_row_group", counting)
    path = table(
        tmp_path / "a.parquet", group=16, image=structs([image(str(k)) for k in range(256)], [None] * 256)
    )
    convert(open_source([path]), tmp_path / "a.beton", workers=4)
    assert sorted(read) == list(range(16))


def test_nulls_and_images_that_are_elsewhere(tmp_path):
    """Each row is named, and left out; with `--on-error stop` nothing is written."""
    images = structs(
        [IMAGES[0], None, None, b"", b"no image"], ["0.jpg", None, "elsewhere/2.jpg", "3.jpg", None]
    )
    path = table(tmp_path / "a.parquet", image=images, label=pa.array([0, 1, 1, 1, None]))
    assert main(["convert", path, str(tmp_path / "a.beton")]) == 0
    assert json.loads((tmp_path / "a.json").read_text())["skipped"] == {
        "row 1": "no image bytes (null)",
        "elsewhere/2.jpg": "no image bytes, only a path ('elsewhere/2.jpg'); store the images themselves in the table",
        "3.jpg": "the file is empty",
        "row 4": "no image of a known format",
    }
    assert BetonReader(tmp_path / "a.beton").labels.tolist() == [0]
    before = sorted(os.listdir(tmp_path))
    assert main(["convert", path, str(tmp_path / "b.beton"), "--on-error", "stop"]) == 2
    assert sorted(os.listdir(tmp_path)) == before
    rows = pa.array([None, {"bytes": IMAGES[1], "path": "1.jpg"}], images.type)
    source = open_source([table(tmp_path / "b.parquet", image=rows)])
    assert source.read(1) == IMAGES[1]
    with pytest.raises(ValueError, match="null"):
        source.read(0)


def test_names_that_repeat_or_are_not_utf_8(tmp_path, capsys):
    """Repeated ones are all taken; text that is no UTF-8 is one line, and nothing is written."""
    path = table(tmp_path / "a.parquet", image=structs(IMAGES[:2], ["x.jpg", "x.jpg"]), label=[0, 1])
    assert main(["convert", path, str(tmp_path / "a.beton"), "--order", "source"]) == 0
    assert read_names(tmp_path / "a.beton") == ["x.jpg", "x.jpg"]
    names = pa.array([b"caf\xe9.jpg", b"b.jpg"], pa.binary()).view(pa.string())
    images = pa.StructArray.from_arrays([pa.array(IMAGES[:2], pa.binary()), names], ["bytes", "path"])
    path = table(tmp_path / "b.parquet", image=images)
    capsys.readouterr()
    before = sorted(os.listdir(tmp_path))
    assert main(["convert", path, str(tmp_path / "b.beton")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "b.parquet" in line and "UTF-8" in line
    assert sorted(os.listdir(tmp_path)) == before


def test_names_of_another_type(tmp_path):
    images = pa.array(
        [{"bytes": IMAGES[0], "path": 7}], pa.struct([("bytes", pa.binary()), ("path", pa.int64())])
    )
    source = open_source([table(tmp_path / "a.parquet", image=images)])
    assert (source.item(0), source.read(0)) == ("row 0", IMAGES[0])


def test_an_image_that_is_too_large(tmp_path):
    source = open_source([table(tmp_path / "a.parquet", image=[bytes(2_000_000), IMAGES[0]])], max_file_mb=1)
    with pytest.raises(ValueError, match="--max-file-mb"):
        source.read(0)
    assert source.read(1) == IMAGES[0]


@pytest.mark.parametrize(
    ("columns", "option", "message"),
    [
        ({"text": ["x"]}, None, "no column is the image; the columns are text"),
        ({"a": [b"x"], "b": [b"x"]}, None, "2 columns may be the image; the columns are a, b"),
        ({"image": [b"x"]}, "image=img", "--columns names 'img'; the columns are image"),
        ({"image": [b"x"], "text": ["x"]}, "image=text", "holds no image bytes"),
        ({"image": [b"x"], "label": [0.5]}, None, "'label' is of type double; labels must be"),
        ({"image": [b"x"], "label": [-2]}, None, "'row 0' has label -2, not a class number"),
        ({"image": [b"x"], "label": [1 << 40]}, None, "not a class number"),
        ({"image": pa.array([], pa.binary())}, None, "no rows in it"),
        ({"image": [["x"]]}, None, "no column is the image"),
    ],
)
def test_a_table_that_says_nothing_clear(tmp_path, columns, option, message):
    with pytest.raises(ValueError, match=message) as caught:
        open_source([table(tmp_path / "a.parquet", **columns)], columns=option)
    assert str(caught.value).isprintable()


def test_labels_beyond_the_names(tmp_path):
    write_parquet(tmp_path / "a.parquet", [("x.jpg", IMAGES[0], 4)])
    with pytest.raises(ValueError, match=r"'x\.jpg' has label 4, not one of its 4 classes"):
        open_source([str(tmp_path / "a.parquet")])


@pytest.mark.parametrize("metadata", [b"{", b"[]", b'{"info": {"features": []}}', b"[" * 100_000, b"\xff"])
def test_metadata_of_another_kind(tmp_path, metadata):
    data = pa.table({"image": IMAGES, "label": [0] * 10}).replace_schema_metadata({"huggingface": metadata})
    parquet.write_table(data, tmp_path / "a.parquet")
    assert open_source([str(tmp_path / "a.parquet")]).class_names is None


def test_two_label_features(tmp_path):
    """CIFAR-100 on Hugging Face has fine and coarse labels."""
    features = {"img": {"_type": "Image"}}
    features |= {
        name: {"_type": "ClassLabel", "names": ["a", "b"]} for name in ("fine_label", "coarse_label")
    }
    data = pa.table({"img": IMAGES[:2], "fine_label": [0, 1], "coarse_label": [1, 1]})
    data = data.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    parquet.write_table(data, tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"2 columns may be the label; .*--columns label=NAME"):
        open_source([str(tmp_path / "a.parquet")])
    source = open_source([str(tmp_path / "a.parquet")], columns="label=fine_label")
    assert (source.class_names, source.labels.tolist()) == (["a", "b"], [0, 1])


def test_damage(tmp_path):
    """In the footer the file is refused; in a row group its rows are left out, and the group is tried once."""
    path = Path(table(tmp_path / "a.parquet", group=5, image=structs(IMAGES), label=[0] * 10))
    whole = path.read_bytes()
    for data in (whole[:-10], whole[:100], b"PAR1", b"", b"x" * 1000):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=r"a\.parquet: corrupt, or no Parquet file") as caught:
            open_source([str(path)])
        assert str(caught.value).isprintable()
    place = parquet.ParquetFile(pa.BufferReader(whole)).metadata.row_group(1).column(0)
    data = bytearray(whole)
    start = place.dictionary_page_offset or place.data_page_offset
    data[start : start + 40] = b"\xff" * 40
    path.write_bytes(data)
    source = open_source([str(path)])
    assert [source.read(k) for k in range(5)] == IMAGES[:5]
    for k in range(5, 10):
        with pytest.raises(ValueError, match="corrupt"):
            source.read(k)


def test_a_row_group_that_is_too_large(tmp_path, monkeypatch):
    path = table(tmp_path / "a.parquet", image=IMAGES)
    monkeypatch.setattr("pipelines.convert.parquet.MAX_GROUP_BYTES", 1000)
    with pytest.raises(ValueError, match=r"row group 0 has .* smaller row groups"):
        open_source([path])


def test_files_with_other_columns(tmp_path):
    paths = [
        table(tmp_path / "a.parquet", image=IMAGES, label=[0] * 10),
        table(tmp_path / "b.parquet", image=IMAGES),
    ]
    with pytest.raises(ValueError, match=r"b\.parquet: no column 'label', which a\.parquet has"):
        open_source(paths)


def test_without_pyarrow(tmp_path, monkeypatch):
    path = table(tmp_path / "a.parquet", image=IMAGES)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ValueError, match=r"a Parquet file needs pyarrow .*pip install 'fastclr\[parquet\]'"):
        open_source([path])


def test_no_space_for_the_temporary_file(tmp_path, monkeypatch):
    """What is said names the folder; nothing is left."""
    path = table(tmp_path / "a.parquet", image=structs(IMAGES))

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pipelines.convert.spool.tempfile.TemporaryFile", full)
    with pytest.raises(OSError, match="No space left"):
        convert(open_source([path]), tmp_path / "a.beton")
    assert os.listdir(tmp_path) == ["a.parquet"]


def test_an_interrupt_or_an_error_leaves_nothing(tmp_path):
    """While row groups are put into the order of the file: the temporary file has no name."""
    images = [image(str(k)) for k in range(64)]
    path = table(tmp_path / "a.parquet", group=8, image=structs([*images, b"no image"], [None] * 65))
    seen: list[int] = []

    def interrupt(done: int) -> None:
        seen.append(done)
        assert not list(tmp_path.glob(".fastclr*")) or os.name == "nt"
        if done == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(open_source([path]), tmp_path / "a.beton", progress=interrupt, workers=2)
    assert os.listdir(tmp_path) == ["a.parquet"]
    assert seen == list(range(1, 21))
    with pytest.raises(ValueError, match="'row 64': no image"):
        convert(open_source([path]), tmp_path / "a.beton", on_error="stop", workers=2)
    assert os.listdir(tmp_path) == ["a.parquet"]
