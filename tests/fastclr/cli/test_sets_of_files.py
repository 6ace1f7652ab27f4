"""Every command takes a set of files where it takes one."""

import json
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from PIL import Image
from support.tiny_run import write_tiny_file, write_tiny_recipe

from fastclr.cli.main import main
from fastclr.train.checkpoint import load_checkpoint
from pipelines.beton import BetonReader, BetonWriter
from pipelines.beton.sets import shard_path

COUNTS = (30, 9, 40)


def split(whole: Path, folder: Path) -> list[Path]:
    paths = [shard_path(folder / "set.beton", k, len(COUNTS)) for k in range(len(COUNTS))]
    with BetonReader(whole) as reader:
        numbers = iter(range(len(reader)))
        for path, count in zip(paths, COUNTS, strict=True):
            with BetonWriter(path, count) as writer:
                for index in (next(numbers) for _ in range(count)):
                    writer.add_raw(*reader[index])
    return paths


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return write_tiny_file(tmp_path_factory.mktemp("whole") / "tiny.beton", sum(COUNTS))


@pytest.fixture(scope="module")
def shards(whole, tmp_path_factory) -> list[Path]:
    return split(whole, tmp_path_factory.mktemp("set"))


def spellings(shards: list[Path]) -> list[list[str]]:
    """A list, a pattern in quotes, a folder."""
    return [[f"{path}" for path in shards], [f"{shards[0].parent}/set-*.beton"], [f"{shards[0].parent}"]]


def test_info(shards, capsys):
    for files in spellings(shards):
        assert main(["info", *files]) == 0
        printed = capsys.readouterr().out
        assert "79 images (0 JPEG, 79 raw)" in printed
        assert f"files            3, {shards[0].name} to {shards[2].name}, of 9 to 40 images" in printed
        assert "labels: 5 classes of 15 to 16 images" in printed
        assert "no index" in printed


def test_missing_shards_are_one_line(shards, capsys, tmp_path):
    for path in (shards[0], shards[2]):
        (tmp_path / path.name).symlink_to(path)
    assert main(["info", f"{tmp_path}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "1 of 3 shards are missing: set-00001-of-00003.beton" in line


def test_no_file_at_all(capsys):
    assert main(["info"]) == 2
    assert "FILE.beton is missing" in capsys.readouterr().err


def test_preview(whole, shards, tmp_path):
    def sheet(*files: str) -> np.ndarray:
        out = tmp_path / "views.png"
        assert main(["preview", *files, "--out", f"{out}", "--rows", "3", "--size", "16"]) == 0
        return np.asarray(Image.open(out))[60:]  # below the title

    expected = sheet(f"{whole}")
    for files in spellings(shards):
        assert (sheet(*files) == expected).all()


@pytest.mark.slow
def test_train_and_evaluate(whole, shards, tmp_path, capsys):
    """The same weights as from one file; continued under another spelling; then evaluated on the set."""
    recipe, held_out = f"{write_tiny_recipe(tmp_path / 'tiny.toml')}", f"{shards[0].parent}/*.beton"
    one, several = tmp_path / "one", tmp_path / "several"
    assert main(["train", recipe, f"{whole}", "--out", f"{one}", "--train.epochs", "2"]) == 0
    listed, pattern, folder = spellings(shards)
    common = ["--out", f"{several}", "--val", held_out, "--train.epochs", "2"]
    assert main(["train", recipe, *listed, *common]) == 0
    states = [load_checkpoint(run / "last.pt")["model"] for run in (one, several)]
    assert states[0].keys() == states[1].keys()
    assert all((states[0][name] == states[1][name]).all() for name in states[0])
    capsys.readouterr()
    for files in (pattern, folder):
        assert main(["train", recipe, *files, *common]) == 0
        assert "it is done" in capsys.readouterr().out
    assert main(["train", recipe, *listed[::-1], *common]) == 2
    assert "holds a run" in capsys.readouterr().err
    assert (
        main(
            [
                "evaluate",
                f"{several}",
                "--train",
                folder[0],
                "--test",
                pattern[0],
                "--epochs",
                "0",
                "--k",
                "5",
            ]
        )
        == 0
    )
    record = json.loads((several / "evaluate.json").read_text())
    assert record["train"]["fingerprint"] == record["test"]["fingerprint"]
    assert record["train"]["samples"] == 79


@pytest.fixture(scope="module")
def jpeg_shards(tmp_path_factory) -> list[Path]:
    """Two shards of 150 JPEGs each."""
    folder, rng = tmp_path_factory.mktemp("jpegs"), np.random.default_rng(0)
    paths = [shard_path(folder / "set.beton", k, 2) for k in range(2)]
    for path in paths:
        with BetonWriter(path, 150) as writer:
            for _ in range(150):
                writer.add_jpeg(simplejpeg.encode_jpeg(rng.integers(0, 256, (24, 24, 3), np.uint8), 90), 0)
    return paths


@pytest.mark.slow
def test_bench_loader(jpeg_shards, tmp_path, capsys):
    out = tmp_path / "loader.json"
    common = ["--sizes", "16", "--rounds", "1", "--threads", "1", "--batch-size", "4", "--only", "crops"]
    assert main(["bench", "loader", f"{jpeg_shards[0].parent}", *common, "--out", f"{out}"]) == 0
    report = json.loads(out.read_text())
    assert report["file"]["images"] == 300
    rows = report["results"]["crops"]
    assert [row["name"] for row in rows] == ["fastclr native", "torchvision, same JPEGs"]
    assert all(row["rounds"] for row in rows), [row["error"] for row in rows]
    assert main(["bench", "loader", *map(str, jpeg_shards), *common, "--peers", "ffcv"]) == 2
    assert "FFCV's loader reads one" in capsys.readouterr().err


@pytest.mark.slow
def test_doctor(jpeg_shards, capsys):
    assert main(["doctor", "--file", f"{jpeg_shards[0].parent}/*.beton", "--json"]) == 0
    checks = {check["name"]: check for check in json.loads(capsys.readouterr().out)}
    assert "64 images of *.beton" in checks["decoder, 1 thread"]["detail"]
    assert checks["disk"]["ok"]
