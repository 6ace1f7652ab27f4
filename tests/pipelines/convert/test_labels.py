"""Tables of labels beside images, in the formats that data sets bring."""

import json
import os
import tarfile
from pathlib import Path

import pytest
from support.imagenet_sets import WNIDS, image, truth, write_layout

from fastclr.cli.main import main
from pipelines.beton import BetonReader
from pipelines.convert import open_source


@pytest.fixture
def folder(tmp_path) -> Path:
    """Four images: two in one folder, two in another, of which two have the same name."""
    root = tmp_path / "images"
    for name in ("a/1.jpg", "a/2.jpg", "b/1.jpg", "b/3.jpg"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(image(name))
    return root


def labels(source) -> dict[str, int]:
    return {source.item(k): int(label) for k, label in enumerate(source.labels)}


def labelled(folder: Path, text: str | bytes, name: str = "labels.csv", columns: str | None = None):
    path = folder.parent / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return open_source([str(folder)], columns=columns, labels=path)


BY_PATH = {"a/1.jpg": "owl", "a/2.jpg": "auk", "b/1.jpg": "kea", "b/3.jpg": "owl"}
NUMBERS = {"a/1.jpg": 2, "a/2.jpg": 0, "b/1.jpg": 1, "b/3.jpg": 2}


@pytest.mark.parametrize("separator", [",", ";", "\t", "|", " "])
@pytest.mark.parametrize("header", ["", "file_name,label", "Label,FileName"])
def test_csv(folder, separator, header):
    swap = header.startswith("Label")
    rows = [[header.split(",")[0], header.split(",")[1]]] if header else []
    rows += [[label, name] if swap else [name, label] for name, label in BY_PATH.items()]
    source = labelled(folder, "\n".join(separator.join(row) for row in rows))
    assert (labels(source), source.class_names) == (NUMBERS, ["auk", "kea", "owl"])
    assert "labels from labels.csv: 4 images, 3 classes" in source.remarks
    assert all(source.read(k) == image(source.item(k)) for k in range(4))


@pytest.mark.parametrize("coding", ["utf-8-sig", "utf-16"])
def test_what_spreadsheets_write(folder, coding):
    """Quotes, a byte order mark, other line ends, empty lines."""
    text = "\r\n".join(f'"{name}","{label}"' for name, label in BY_PATH.items()) + "\r\n\r\n"
    assert labels(labelled(folder, text.encode(coding))) == NUMBERS


def test_columns_of_other_names(folder):
    text = "split,what,pic\n" + "".join(f"train,{label},{name}\n" for name, label in BY_PATH.items())
    assert labels(labelled(folder, text, columns="image=pic,label=what")) == NUMBERS
    with pytest.raises(ValueError, match=r"labels\.csv: no column 'whatever'; it has split, what, pic"):
        labelled(folder, text, columns="image=pic,label=whatever")
    with pytest.raises(ValueError, match="which column is the label"):
        labelled(folder, text, columns="image=pic")


def test_a_header_of_unknown_words(folder):
    """The first line, whose name no image has, is no class."""
    source = labelled(folder, "pic,what\n" + "".join(f"{name},{label}\n" for name, label in BY_PATH.items()))
    assert labels(source) == NUMBERS
    assert "the first line of labels.csv is taken for a header" in source.remarks


@pytest.mark.parametrize("name", ["labels.json", "labels.jsonl", "metadata.jsonl"])
def test_json_lines(folder, name):
    text = "\n".join(json.dumps({"file_name": file, "label": label}) for file, label in BY_PATH.items())
    assert labels(labelled(folder, text, name)) == NUMBERS
    text = text.replace("file_name", "x").replace('"label"', '"y"')
    assert labels(labelled(folder, text, name, "image=x,label=y")) == NUMBERS


@pytest.mark.parametrize(
    "content",
    [
        [{"file_name": name, "label": label} for name, label in NUMBERS.items()],
        [[name, label] for name, label in NUMBERS.items()],
        {"labels": [[name, label] for name, label in NUMBERS.items()]},
        NUMBERS,
        {name: float(label) for name, label in NUMBERS.items()},
    ],
)
def test_json(folder, content):
    """A list of objects or pairs, StyleGAN's dataset.json, an object; labels are numbers, without names."""
    source = labelled(folder, json.dumps(content), "dataset.json")
    assert (labels(source), source.class_names) == (NUMBERS, None)


def test_tiny_imagenets_annotations(tmp_path):
    """Its validation folder: images in `images`, and boxes behind the class."""
    images = tmp_path / "val" / "images"
    images.mkdir(parents=True)
    for k in range(3):
        (images / f"val_{k}.JPEG").write_bytes(image(f"val_{k}"))
    text = "".join(f"val_{k}.JPEG\t{wnid}\t0\t32\t44\t62\n" for k, wnid in enumerate(WNIDS[2::-1]))
    (tmp_path / "val" / "val_annotations.txt").write_text(text)
    source = open_source([str(images)], labels=tmp_path / "val" / "val_annotations.txt")
    assert (source.labels.tolist(), source.class_names) == ([2, 1, 0], WNIDS[:3])


def test_kaggles_solution_and_a_tar(tmp_path):
    """Names without suffixes, and boxes behind the classes."""
    root = write_layout("kaggle", tmp_path / "set")
    with tarfile.open(tmp_path / "val.tar", "w") as tar:
        tar.add(root / "ILSVRC" / "Data" / "CLS-LOC" / "val", "val")
    source = open_source([str(tmp_path / "val.tar")], labels=root / "LOC_val_solution.csv")
    assert source.class_names == WNIDS
    expected = {f"val/{name}": label for name, (label, _) in truth()["val"].items()}
    assert labels(source) == expected


def test_imagenets_ground_truth(tmp_path):
    root = write_layout("flat", tmp_path / "set")
    file = root / "ILSVRC2012_devkit_t12" / "data" / "ILSVRC2012_validation_ground_truth.txt"
    source = open_source([str(root / "val")], labels=file)
    assert source.class_names == WNIDS
    assert labels(source) == {name: label for name, (label, _) in truth()["val"].items()}
    (file.parent / "meta.mat").unlink()
    with pytest.raises(ValueError, match=r"explained by meta\.mat, which must lie beside it"):
        open_source([str(root / "val")], labels=file)


def test_hugging_faces_metadata(folder):
    text = "file_name,text,label\n" + "".join(f'{n},"an owl, or so",{k}\n' for n, k in NUMBERS.items())
    assert labels(labelled(folder, text, "metadata.csv")) == NUMBERS


def test_numbers_one_on_a_line(folder):
    assert labels(labelled(folder, "2\n0\n1\n2\n", "labels.txt")) == NUMBERS
    with pytest.raises(ValueError, match=r"labels\.txt: 3 labels without names for 4 images"):
        labelled(folder, "2\n0\n1\n", "labels.txt")


def test_names_without_folders(folder):
    """A name that two images have is the label of neither: both are named."""
    source = labelled(folder, "1.jpg,owl\n2.jpg,auk\n3.jpg,auk\n")
    assert (labels(source), source.class_names) == (
        {"a/1.jpg": -1, "a/2.jpg": 0, "b/1.jpg": -1, "b/3.jpg": 0},
        ["auk"],
    )
    with pytest.raises(ValueError, match="2 images have this name"):
        source.read(0)


def test_what_has_no_label_or_no_image_is_named(folder, tmp_path, capsys):
    """Left out one by one; with `--on-error stop` one line, and nothing is written."""
    table = tmp_path / "labels.csv"
    table.write_text("file,label\na/1.jpg,owl\na/2.jpg,\nb/1.jpg,owl\nb/1.jpg,auk\ngone/9.jpg,owl\n")
    out = tmp_path / "out.beton"
    assert main(["convert", str(folder), str(out), "--labels", str(table)]) == 0
    printed = capsys.readouterr().out
    assert "images without a clear label in labels.csv: 'a/2.jpg', 'b/1.jpg', 'b/3.jpg'" in printed
    assert "labels of images that are not there, in labels.csv: 'gone/9.jpg'" in printed
    assert json.loads((tmp_path / "out.json").read_text())["skipped"] == {
        "a/2.jpg": "no label in labels.csv",
        "b/1.jpg": "two labels in labels.csv: 'owl' and 'auk'",
        "b/3.jpg": "no label in labels.csv",
        "gone/9.jpg": "in labels.csv, but not among the images",
    }
    assert (BetonReader(out).labels.tolist(), BetonReader(out).class_names) == ([0], ["owl"])
    before = sorted(os.listdir(tmp_path))
    stop = ["--labels", str(table), "--on-error", "stop"]
    assert main(["convert", str(folder), str(tmp_path / "stop.beton"), *stop]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "", "empty; a table of labels"),
        ("a.csv", "\n\n", "empty; a table of labels"),
        ("a.csv", bytes(range(256)), "binary data"),
        ("a.csv", "a/1.jpg\na/2.jpg\n", "has one column"),
        ("a.csv", "x,y\nz,w\n", "no image has a name of the table"),
        ("a.csv", "file,label\n,\n", "no image has a name of the table"),
        ("a.csv", "number,label\n77,2\n", "no image has a name of the table"),
        ("a.csv", "label,file\nowl\n", "a line has too few columns"),
        ("a.csv", '"a/1.jpg,owl\n' + "x" * 200_000, "no CSV table"),
        ("a.json", "[" * 100_000, "nested too deeply"),
        ("a.json", '{"file_name": "a"', "line 1: no valid JSON"),
        ("a.json", '["a", "b"]', "no objects"),
        ("a.json", "[]", "no table of labels"),
        ("a.jsonl", '{"file_name": "a/1.jpg", "label": 1}\n{"label": 1}', "entry 2 has no name"),
        ("a.jsonl", '{"x": "a/1.jpg", "y": 1}\n{"x": "a/2.jpg", "y": 1}', "which column is the image"),
    ],
)
def test_what_is_no_table(folder, name, text, message):
    with pytest.raises(ValueError, match=message) as caught:
        labelled(folder, text, name)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("label", [True, None, [1], 0.5, 1 << 30, -2])
def test_labels_of_other_kinds(folder, label):
    rows = [{"file_name": name, "label": 0} for name in BY_PATH]
    rows[0]["label"] = label
    source = labelled(folder, "\n".join(map(json.dumps, rows)), "labels.jsonl")
    assert source.labels.tolist() == [-1, 0, 0, 0]
    with pytest.raises(ValueError, match="label"):
        source.read(0)


def test_names_that_are_not_utf_8(tmp_path):
    (tmp_path / "set").mkdir()
    name = os.fsdecode(b"caf\xe9.jpg")
    (tmp_path / "set" / name).write_bytes(b"x")
    (tmp_path / "set" / "b.jpg").write_bytes(b"y")
    source = labelled(tmp_path / "set", b"caf\xe9.jpg,\xe9t\xe9\nb.jpg,b\n")
    assert source.class_names == ["\\udce9t\\udce9", "b"] or source.class_names == ["b", "\\udce9t\\udce9"]
    assert source.read(1) in (b"x", b"y")
    assert min(source.labels) == 0


def test_where_labels_do_not_belong(folder, tmp_path):
    (tmp_path / "a.csv").write_text("a/1.jpg,owl\n")
    root = write_layout("folders", tmp_path / "set")
    with pytest.raises(ValueError, match="imagenet has labels of its own"):
        open_source([f"imagenet:{root}"], labels=tmp_path / "a.csv")
    with pytest.raises(ValueError, match="--labels is a table for one source"):
        open_source([str(folder), str(folder)], labels=tmp_path / "a.csv", merge=True)
