"""The file of names beside a `.beton` file."""

import os

import pytest
from support.imagenet_sets import image

from fastclr.cli.main import main
from pipelines.beton import BetonReader
from pipelines.convert import FolderSource, convert
from pipelines.convert.names_file import escape, read_names, unescape


def tree(root, names: list[str]):
    (root / "a").mkdir(parents=True)
    for name in names:
        (root / "a" / name).write_bytes(image(name))
    return root


def test_every_line_is_a_name_in_the_order_of_the_file(tmp_path):
    """Line feeds and backslashes are escaped; images that are left out have no line."""
    names = [
        "new\nline.jpg",
        "re\rturn.jpg",
        "back\\slash.jpg",
        "ü\u2028.jpg",
        "x\\n.jpg",
        os.fsdecode(b"\xff.jpg"),
    ]
    root = tree(tmp_path / "set", names)
    (root / "a" / "corrupt.jpg").write_bytes(b"no image")
    convert(FolderSource(root), tmp_path / "out.beton", seed=3)
    found = read_names(tmp_path / "out.beton")
    assert (tmp_path / "out.names").read_bytes().count(b"\n") == len(found) == len(names)
    expected = {f"a/{name}": image(name) for name in names[:-1]} | {"a/\\udcff.jpg": image(names[-1])}
    with BetonReader(tmp_path / "out.beton") as reader:
        assert {name: reader.image_bytes(k).tobytes() for k, name in enumerate(found)} == expected


@pytest.mark.parametrize("name", ["", "\\", "\\n", "\n", "a\\\nb\r\\r\\\\"])
def test_escapes_are_undone(name):
    assert unescape(escape(name)) == name
    assert "\n" not in escape(name) and "\r" not in escape(name)


def test_a_file_of_somebody_else_is_not_overwritten(tmp_path, capsys):
    root = str(tree(tmp_path / "set", ["1.jpg"]))
    out = tmp_path / "out.beton"
    (tmp_path / "out.names").write_text("my own notes")
    with pytest.raises(
        FileExistsError, match=r"out\.names exists and holds no names that fastclr has written"
    ):
        convert(FolderSource(tmp_path / "set"), out)
    assert main(["convert", root, str(out)]) == 2
    assert "out.names exists; choose another name, or --overwrite it" in capsys.readouterr().err
    assert (tmp_path / "out.names").read_text() == "my own notes"
    assert sorted(os.listdir(tmp_path)) == ["out.names", "set"]
    assert main(["convert", root, str(out), "--overwrite"]) == 0
    assert read_names(out) == ["a/1.jpg"]
    convert(FolderSource(tmp_path / "set"), out)  # ours is replaced
    (tmp_path / "out.names").write_text("edited")
    with pytest.raises(FileExistsError, match=r"out\.names"):
        convert(FolderSource(tmp_path / "set"), out)


def test_a_failure_leaves_the_old_names(tmp_path):
    root = tree(tmp_path / "set", ["1.jpg", "2.jpg"])
    out = tmp_path / "out.beton"
    convert(FolderSource(root), out)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    (root / "a" / "1.jpg").write_bytes(b"no image")
    with pytest.raises(ValueError, match="no image"):
        convert(FolderSource(root), out, on_error="stop")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before
