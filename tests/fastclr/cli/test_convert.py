"""`fastclr convert` as a user runs it: what it prints, its exit codes, and what a signal leaves behind."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import simplejpeg

from fastclr.cli.main import main
from pipelines.beton import BetonReader


def test_a_conversion(tiny_photos, tmp_path, capsys):
    assert main(["convert", str(tiny_photos), str(tmp_path / "tiny.beton"), "--workers", "2"]) == 0
    printed = capsys.readouterr().out
    assert f"class folders '{tiny_photos.name}': 40 images, 4 classes" in printed
    # fewer images than samples of the comparison: it is left out, and with it the import of numba
    assert "samples stored" not in printed
    assert "tiny.beton: 40 images, " in printed
    assert "40 byte for byte, 0 encoded, 0 left out" in printed
    assert sorted(os.listdir(tmp_path)) == ["tiny.beton", "tiny.json", "tiny.names"]


def test_the_comparison(tiny_photos, tmp_path, capsys):
    for copy in ("a", "b"):
        shutil.copytree(tiny_photos, tmp_path / "photos" / copy)
    assert main(["convert", str(tmp_path / "photos"), str(tmp_path / "x.beton")]) == 0
    printed = capsys.readouterr().out
    assert "64 samples stored in each way" in printed
    for way in ("--jpeg keep ◀", "--jpeg recompress  "):  # the mark stands at the chosen one
        assert way in printed
    assert printed.count("images/s") >= 6
    # whoever has chosen needs no comparison, which takes longer than the conversion of some thousand small images
    assert main(["convert", str(tmp_path / "photos"), str(tmp_path / "y.beton"), "--jpeg=keep"]) == 0
    assert "stored in each way" not in capsys.readouterr().out


def test_what_a_small_conversion_does_not_import(tiny_photos, tmp_path):
    """Compiled code and plots take half a second to load: the start of every command."""
    code = "import sys; from fastclr.cli.main import main; code = main(sys.argv[1:]); print(*sys.modules)"
    for command in (
        ["convert", str(tiny_photos), str(tmp_path / "x.beton")],
        ["info", str(tmp_path / "x.beton")],
    ):
        ran = subprocess.run(
            [sys.executable, "-c", f"{code}; sys.exit(code)", *command], capture_output=True, text=True
        )
        assert ran.returncode == 0, ran.stderr
        loaded = set(ran.stdout.splitlines()[-1].split())
        assert not loaded & {"numba", "torch", "torchvision", "matplotlib", "pyarrow", "scipy", "ray"}


def test_every_option_arrives(tiny_photos, tmp_path):
    options = (
        "--jpeg recompress --max-side 32 --quality 40 --order source --seed 5 --workers 1 --on-error stop"
    )
    options += " --verify header --restart 3 --max-scans 7 --max-pixels-per-byte 5000 --max-memory-mb 100"
    out = tmp_path / "small.beton"
    assert main(["convert", str(tiny_photos), str(out), *options.split()]) == 0
    with BetonReader(out) as reader:
        assert max(reader.heights.max(), reader.widths.max()) == 32
        assert (np.diff(reader.labels) >= 0).all()
    said = json.loads((tmp_path / "small.json").read_text())["options"]
    encoding = {"jpeg": "recompress", "mode": "jpg", "max_side": 32, "quality": 40, "verify": "header"}
    encoding |= {"restart": 3, "max_scans": 7, "max_pixels_per_byte": 5000, "max_memory_mb": 100}
    assert said == encoding | {"order": "source", "seed": 5, "on_error": "stop"}
    assert main(["convert", str(tiny_photos), str(out), "--mode", "raw", "--overwrite"]) == 0
    assert not BetonReader(out).is_jpeg(0)


def test_an_option_between_source_and_out(tiny_photos, tmp_path, capsys):
    assert main(["convert", str(tiny_photos), "--jpeg", "recompress", str(tmp_path / "out.beton")]) == 2
    said = capsys.readouterr().err
    assert "before SOURCE or after OUT.beton" in said
    assert said.count("\n") == 1
    assert main(["convert", str(tiny_photos), str(tmp_path / "out.beton"), "--jepg", "keep"]) == 2
    said = capsys.readouterr().err
    assert "--jepg" in said
    assert "before SOURCE" not in said


def test_onto_a_link(tiny_photos, tmp_path, capsys):
    """The link is replaced, with a side-car beside it; what it led to stays as it is, and keeps its own."""
    disk, here = tmp_path / "disk", tmp_path / "here"
    disk.mkdir()
    here.mkdir()
    assert main(["convert", str(tiny_photos), str(disk / "old.beton")]) == 0
    before = {path.name: path.read_bytes() for path in disk.iterdir()}
    link = here / "set.beton"
    for target in (disk / "old.beton", disk / "nowhere.beton"):
        link.unlink(missing_ok=True)
        link.symlink_to(target)
        assert main(["convert", str(tiny_photos), str(link)]) == 2
        assert "set.beton exists" in capsys.readouterr().err
        assert link.is_symlink()
        assert main(["convert", str(tiny_photos), str(link), "--seed", "1", "--overwrite"]) == 0
        assert sorted(os.listdir(here)) == ["set.beton", "set.json", "set.names"]
        assert not link.is_symlink()
        assert BetonReader(link).sidecar["options"]["seed"] == 1
        assert {path.name: path.read_bytes() for path in disk.iterdir()} == before
        (here / "set.json").unlink()


def test_corrupt_images_are_named(tiny_photos, tmp_path, capsys):
    folder = tmp_path / "images"
    shutil.copytree(tiny_photos, folder)
    (folder / "class-0" / "new\nline [bold].jpg").write_bytes(b"no image")
    for k in range(6):
        (folder / "class-1" / f"empty-{k}.png").touch()
    (folder / "class-2" / "big.jpg").write_bytes(simplejpeg.encode_jpeg(np.zeros((8, 501, 3), np.uint8)))
    assert main(["convert", str(folder), str(tmp_path / "out.beton")]) == 0
    printed = capsys.readouterr().out
    assert "40 byte for byte, 1 encoded, 7 left out" in printed
    assert "noted: 1 × longer side over 500 pixels" in printed
    assert printed.count("  left out: ") == 5
    assert "… and 2 more, named in" in printed
    skipped = json.loads((tmp_path / "out.json").read_text())["skipped"]
    assert skipped["class-0/new\nline [bold].jpg"] == "no image of a known format"
    assert len(skipped) == 7
    assert main(["convert", str(folder), str(tmp_path / "stop.beton"), "--on-error", "stop"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "stop.beton").exists()


def test_a_file_that_is_too_large_is_named_and_left_out(tiny_photos, tmp_path, capsys):
    """Its 6 GB are not read, which would take seconds and the memory; neither is a folder that is a loop."""
    folder, out = tmp_path / "images", tmp_path / "out.beton"
    shutil.copytree(tiny_photos, folder)
    (folder / "class-1" / "big.jpg").touch()
    os.truncate(folder / "class-1" / "big.jpg", 6 << 30)
    (folder / "class-2" / "loop.jpg").symlink_to(folder / "class-2" / "loop.jpg")
    (folder / "class-2" / "loop").symlink_to(folder / "class-2" / "loop")
    assert main(["convert", str(folder), str(out)]) == 0
    printed = capsys.readouterr().out
    assert "40 byte for byte, 0 encoded, 2 left out" in printed
    assert "ignored, links that lead nowhere: 'class-2/loop'" in printed
    skipped = json.loads((tmp_path / "out.json").read_text())["skipped"]
    assert "--max-file-mb" in skipped["class-1/big.jpg"]
    assert "symbolic links" in skipped["class-2/loop.jpg"]
    assert main(["convert", str(folder), str(out), "--on-error", "stop", "--overwrite"]) == 2


def test_images_without_labels_or_of_one_class(tiny_photos, tmp_path, capsys):
    flat, one = tmp_path / "flat", tmp_path / "one"
    shutil.copytree(tiny_photos / "class-0", flat)
    shutil.copytree(tiny_photos / "class-0", one / "class-0")
    for folder, words in ((flat, "the images have no labels"), (one, "all images are of one class")):
        assert main(["convert", str(folder), str(tmp_path / f"{folder.name}.beton")]) == 0
        assert f"{words}: enough for `fastclr train`" in capsys.readouterr().out
    assert main(["convert", str(tiny_photos), str(tmp_path / "four.beton")]) == 0
    assert "enough for" not in capsys.readouterr().out


@pytest.mark.skipif(sys.platform != "linux", reason="names that are no text")
def test_foreign_names_reach_the_terminal_escaped(tiny_photos, tmp_path, capsys):
    folder = tmp_path / "images"
    shutil.copytree(tiny_photos, folder)
    (folder / "class-0").rename(folder / os.fsdecode(b"\x1b[31mcaf\xe9"))
    (folder / os.fsdecode(b"junk.\x1b[32m\xff")).touch()
    (folder / os.fsdecode(b"other\x1b[33m\xff")).mkdir()
    assert main(["convert", str(folder), str(tmp_path / "out.beton")]) == 0
    printed = capsys.readouterr().out
    assert "\x1b" not in printed and printed.isascii() is False
    assert r".\x1b[32m\udcff" in printed and r"other\x1b[33m\udcff" in printed
    names = json.loads((tmp_path / "out.json").read_text())["class_names"]
    assert names[0] == "\x1b[31mcaf\\udce9"


@pytest.fixture
def bad_inputs(tiny_photos, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "there.beton").touch()
    (tmp_path / "mine.json").touch()
    good, out = str(tiny_photos), str(tmp_path / "out.beton")
    return {
        "needs two arguments": [good],
        "no such folder or file": [str(tmp_path / "missing"), out],
        "no image in it": [str(tmp_path / "empty"), out],
        "must end in .beton": [good, str(tmp_path / "out.tar")],
        "no such folder to write": [good, str(tmp_path / "missing" / "out.beton")],
        "there.beton exists": [good, str(tmp_path / "there.beton")],
        "mine.json exists": [good, str(tmp_path / "mine.beton")],
        "--workers must be at least 1": [good, out, "--workers", "0"],
        "max_side must be 1 to": [good, out, "--max-side", "0"],
        "quality must be 1 to": [good, out, "--quality", "101"],
        "seed must be in": [good, out, "--seed", "-1"],
        "only tars": [good, good, out],
        "--max-file-mb must be at least 1": [good, out, "--max-file-mb", "0"],
        "s3://bucket/train: remote sources are tars": ["s3://bucket/train", out],
        "http://host/out.beton is a URL": [good, "http://host/out.beton"],
    }


INPUTS = 15


@pytest.mark.parametrize("number", range(INPUTS))
def test_bad_input_is_one_line(bad_inputs, number, tmp_path, capsys):
    assert len(bad_inputs) == INPUTS
    message, arguments = list(bad_inputs.items())[number]
    before = sorted(os.listdir(tmp_path))
    assert main(["convert", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("fastclr convert: ")
    assert message in error
    assert error.count("\n") == 1
    assert sorted(os.listdir(tmp_path)) == before
