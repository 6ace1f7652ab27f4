"""`fastclr convert --shards`: a set of files, also when the command is killed, or several share the work."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.sources import linked_jpegs

from fastclr.cli.main import main
from pipelines.beton import BetonReader

SHARDS = 5


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """600 images that take a second or two to encode."""
    return linked_jpegs(tmp_path_factory.mktemp("images"), 600, 300)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def arguments(images: Path, folder: Path, *more: str) -> list[str]:
    folder.mkdir(exist_ok=True)
    return ["convert", f"{images}", f"{folder / 'a.beton'}", "--shards", f"{SHARDS}", "--workers", "2", *more]


@pytest.mark.slow
def test_killed_at_any_moment_and_resumed(images, tmp_path):
    """kill -9 again and again, at moments drawn at random; then to the end: the same bytes."""
    recompress = ("--jpeg", "recompress")
    assert main(arguments(images, tmp_path / "straight", *recompress)) == 0
    expected, draw, kills = contents(tmp_path / "straight"), random.Random(0), 0
    again = arguments(images, tmp_path / "killed", *recompress, "--resume")
    for _ in range(8):
        process = subprocess.Popen(
            [sys.executable, "-m", "fastclr.cli.main", *again],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        # from the first file that it makes on: before, there is nothing to go wrong
        started, before = time.monotonic(), set(os.listdir(tmp_path / "killed"))
        while process.poll() is None and set(os.listdir(tmp_path / "killed")) <= before:
            assert time.monotonic() - started < 60
            time.sleep(0.001)
        time.sleep(draw.uniform(0, 0.4))
        process.kill()
        _, err = process.communicate(timeout=60)
        assert process.returncode in (0, -signal.SIGKILL), err
        kills += process.returncode != 0
    assert kills >= 3
    assert main(again) == 0
    assert contents(tmp_path / "killed") == expected, "no hidden file is left, either"


@pytest.mark.slow
def test_one_shard_each(images, tmp_path, capsys):
    """As an array of jobs does it, with one that was started again."""
    assert main(arguments(images, tmp_path / "all")) == 0
    assert f"the set is complete: {tmp_path / 'all' / 'a.json'}" in capsys.readouterr().out
    for shard in (4, 2, 2, 0, 3, 1):
        assert main(arguments(images, tmp_path / "each", "--shard", f"{shard}", "--resume")) == 0
        printed = capsys.readouterr().out
    assert "the set is complete" in printed
    assert contents(tmp_path / "each") == contents(tmp_path / "all")
    assert len(BetonReader(tmp_path / "each" / "a.json")) == 600


def test_mistakes_are_one_line(tiny_photos, tmp_path, capsys):
    def complaint(*more: str) -> str:
        assert main(["convert", f"{tiny_photos}", f"{tmp_path / 'a.beton'}", *more]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    assert (
        main(["convert", f"{tiny_photos}", f"{tmp_path / 'a.beton'}", "--shards", "3", "--shard", "1"]) == 0
    )
    assert "1 of 3 shards are there; --resume" in capsys.readouterr().out
    assert "a-00001-of-00003.beton exists; --resume" in complaint("--shards", "3")
    assert "(options: seed 0, here 5)" in complaint("--shards", "3", "--seed", "5", "--resume")
    assert "--shard must be 0 to 2" in complaint("--shards", "3", "--shard", "3")
    assert "--resume is for sets" in complaint("--resume")
    assert "40 images do not fill 50 shards" in complaint("--shards", "50")
