"""`bench convert`: rates, bytes and pixel errors of our writer and FFCV's."""

import json
from dataclasses import replace

import numpy as np
import pytest
import simplejpeg

from benchmarks.convert.bench import ConvertReport, ConvertRow, RepeatedFolder, pixel_error
from benchmarks.core.report import RESULTS, load
from fastclr.cli.main import main
from pipelines import BetonWriter
from pipelines.convert import Encoding, FolderSource, convert


def test_our_three_ways(tiny_photos, tmp_path, capsys):
    out = tmp_path / "c.json"
    arguments = [
        "--writers",
        "fastclr",
        "--images",
        "80",
        "--rounds",
        "1",
        "--workers",
        "2",
        "--out",
        str(out),
    ]
    assert main(["bench", "convert", str(tiny_photos), *arguments]) == 0
    found = json.loads(out.read_text("utf-8"))
    keep, unverified, new, raw = found["results"]
    names = ["fastclr --jpeg keep", "fastclr --jpeg keep --verify header", "fastclr --jpeg recompress"]
    names += ["fastclr --mode raw"]
    assert [row["name"] for row in found["results"]] == names
    assert [row["kept"] for row in found["results"]] == [80, 80, 0, 0]
    assert unverified["image_bytes"] == keep["image_bytes"] and unverified["pixel_error"] == 0
    assert found["over_ffcv"] == {}
    assert keep["pixel_error"] == raw["pixel_error"] == 0  # all are within 500 pixels, and decode as PIL's do
    assert 0.5 < new["pixel_error"] < 12
    assert keep["image_bytes"] == 2 * sum(photo.stat().st_size for photo in tiny_photos.glob("*/*.jpg"))
    assert keep["image_bytes"] < raw["image_bytes"] < raw["bytes_out"]
    for row in found["results"]:
        assert row["error"] == "" and row["rounds"] == 1 and row["median"] > 0
    assert "fastclr --jpeg recompress" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_ffcv_writer(tiny_photos, tmp_path, require_package):
    require_package("ffcv")
    out = tmp_path / "c.json"
    arguments = ["--writers", "ffcv", "--images", "40", "--rounds", "1", "--workers", "2", "--out", str(out)]
    assert main(["bench", "convert", str(tiny_photos), *arguments]) == 0
    jpg, raw = json.loads(out.read_text("utf-8"))["results"]
    assert [jpg["name"], raw["name"]] == ["FFCV jpg", "FFCV raw"]
    assert jpg["error"] == raw["error"] == ""
    assert raw["pixel_error"] == 0
    assert 0.5 < jpg["pixel_error"] < 12


def test_the_ratios_are_medians_of_the_rounds():
    report = load(RESULTS / "convert.json", ConvertReport)
    rows = [
        ConvertRow(name="fastclr --jpeg keep", images_per_s=[4.0, 9.0, 100.0]),
        ConvertRow(name="fastclr --mode raw", error="failed"),
        ConvertRow(name="FFCV jpg", images_per_s=[2.0, 3.0, 10.0]),
    ]
    assert replace(report, results=rows).over_ffcv == {"fastclr --jpeg keep": 3.0}


def test_pixel_error_by_hand(tmp_path):
    """For gray images of one value the error is the difference of the values; the skipped image is left out."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, value in enumerate((100, 200, 50)):
        pixels = np.full((16, 16, 3), value, np.uint8)
        (folder / f"{number}.jpg").write_bytes(simplejpeg.encode_jpeg(pixels, 100))
    with BetonWriter(tmp_path / "x.beton", 2) as writer:
        for value in (101, 53):  # 1 and 3 more than the first and the last
            writer.add_raw(np.full((8, 8, 3), value, np.uint8))
    assert pixel_error(tmp_path / "x.beton", folder, skipped={"1.jpg"}) == pytest.approx(2)


def test_pixel_error_of_a_resize(tiny_photos, tmp_path):
    """Against PIL's resize of the source: small, where comparing with another image would give tens of levels."""
    convert(
        FolderSource(tiny_photos), tmp_path / "x.beton", Encoding(mode="raw", max_side=64), order="source"
    )
    assert 0 < pixel_error(tmp_path / "x.beton", tiny_photos, set()) < 3


def test_a_repeated_folder(tiny_photos):
    once, repeated = FolderSource(tiny_photos), RepeatedFolder(tiny_photos, 100)
    assert len(repeated.labels) == 100
    assert repeated.labels[40:80].tolist() == once.labels.tolist()
    assert repeated.item(83) == once.item(3)
    assert repeated.read(83) == once.read(3)


def test_bad_arguments(tiny_photos, capsys):
    assert main(["bench", "convert", "/no/such/folder"]) == 2
    assert "no such folder" in capsys.readouterr().err
    assert main(["bench", "convert", str(tiny_photos), "--quality", "101"]) == 2
    assert "quality must be 1 to 100" in capsys.readouterr().err
