"""The benchmark of a set against one file."""

import numpy as np
import pytest
import simplejpeg

from benchmarks.core.report import load
from benchmarks.loaders import sets
from pipelines.beton import BetonReader, BetonWriter


@pytest.fixture
def file(tmp_path):
    rng = np.random.default_rng(0)
    with BetonWriter(tmp_path / "one.beton", 300) as writer:
        for number in range(300):
            pixels = rng.integers(0, 256, (24, 24, 3), np.uint8)
            if number % 7 == 0:
                writer.add_raw(pixels, number)
            else:
                writer.add_jpeg(simplejpeg.encode_jpeg(pixels, 90), number)
    return tmp_path / "one.beton"


def test_the_set_holds_the_files_images(file, tmp_path):
    (tmp_path / "set").mkdir()
    paths, images = sets.split(file, tmp_path / "set", 7)
    assert images == 300
    with BetonReader(file) as one, BetonReader(paths) as several:
        assert several.labels.tolist() == list(range(300))
        assert all((one[k][0] == several[k][0]).all() for k in range(300))


@pytest.mark.slow
def test_the_command(file, tmp_path):
    more = ["--size", "16", "--batch-size", "4", "--rounds", "1", "--threads", "1", "--shards", "3"]
    sets.main([f"{file}", *more, "--out", f"{tmp_path / 'out.json'}"])
    report = load(tmp_path / "out.json", sets.SetsReport)
    assert [row.name for row in report.rows][:2] == ["one file, crops", "3 files, crops"]
    assert all(row.rounds == 1 for row in report.rows)
    assert report.ratios.keys() == {"crops", "views"}
