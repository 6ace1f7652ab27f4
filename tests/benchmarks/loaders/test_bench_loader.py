"""`bench loader` with tiny settings: every peer for one round, the JSON, the tables and the plots."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from rich.console import Console

from benchmarks.core import harness
from benchmarks.core.harness import measure_in_turn
from benchmarks.core.process import call_in_process
from benchmarks.core.readme import loader_table
from benchmarks.core.report import RESULTS, from_json, load
from benchmarks.loaders.bench import Options, _cases, main, side_by_side_table
from benchmarks.loaders.peers.decode_limit import DecodeLimit
from benchmarks.loaders.peers.ffcv_loader import FfcvLoader
from benchmarks.loaders.report import LoaderReport, LoaderSettings
from benchmarks.loaders.scaling import thread_counts
from benchmarks.loaders.without_markers import without_markers
from fastclr.cli.main import main as fastclr
from pipelines.beton import BetonReader, BetonWriter
from pipelines.convert import Encoding, FolderSource, convert
from pipelines.engines.native import turbojpeg
from pipelines.jpeg.window import has_restarts

ROW = {
    *("name", "lacks", "images_per_s", "cpu_s_per_1000", "first_batch_s", "peak_bytes", "error", "median"),
    "rounds",
}


@pytest.fixture(autouse=True)
def _short_epochs(tmp_path_factory, monkeypatch):
    """In the measuring processes too: they are new interpreters, which read this on their way up."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "sitecustomize.py").write_text(
        "import sys\n"
        "if any('spawn_main' in word for word in sys.orig_argv):\n"
        "    import benchmarks.core.harness as harness\n"
        "    harness.MIN_SECONDS = 0.05\n"
    )
    root = Path(harness.__file__).parents[2]
    monkeypatch.setenv("PYTHONPATH", f"{folder}:{root}")


@pytest.fixture(scope="module")
def tiny(tiny_photos, tmp_path_factory) -> Path:
    """160 images: each of the 40 photos four times."""
    folder = tmp_path_factory.mktemp("bench")
    for times in range(4):
        for photo in tiny_photos.glob("*/*.jpg"):
            (folder / "photos" / photo.parent.name).mkdir(parents=True, exist_ok=True)
            shutil.copy(photo, folder / "photos" / photo.parent.name / f"{times}-{photo.name}")
    out = folder / "tiny.beton"
    convert(FolderSource(folder / "photos"), out, Encoding(jpeg="recompress", max_side=160))
    return out


def run(file: Path, out: Path, *arguments: str) -> dict:
    main([str(file), "--threads", "2", "--rounds", "1", "--batch-size", "8", "--out", str(out), *arguments])
    return json.loads(out.read_text("utf-8"))


def check_row(row: dict) -> None:
    assert set(row) >= ROW
    assert row["error"] == ""
    assert row["rounds"] == 1 and row["median"] == row["low"] == row["high"] > 0
    assert row["first_batch_s"] > 0 and row["peak_bytes"] > 0


@pytest.mark.timeout(300)
def test_peers(tiny, tmp_path, capsys, require_package):
    for package in ("nvidia.dali", "lightly"):
        require_package(package)
    out = tmp_path / "x.json"
    arguments = ["--only", "full", "--peers", "torchvision", "dali", "lightly", "--sizes", "40"]
    found = run(tiny, out, *arguments, "--folder", str(tiny.parent / "photos"))
    assert found["settings"] == {"size": 40, "threads": 2, "batch_size": 8}
    assert found["file"]["images"] == 160
    stored = {"mode": "jpg", "jpeg": "recompress", "max_side": 160, "quality": 90, "restart": "auto"}
    assert found["file"]["convert"] == stored
    assert {"processor", "cores", "versions", "commit", "date"} <= set(found["machine"])
    rows = {row["name"]: row for row in found["results"]["full"]}
    assert list(rows) == [
        "fastclr native",
        "DALI graph, CPU",
        "lightly SimCLRTransform",
        "torchvision, same JPEGs",
        "torchvision, folder",
    ]
    for row in [found["decode_limit"], *rows.values()]:
        check_row(row)
    assert rows["DALI graph, CPU"]["lacks"] == "random order of the jitter, exact hue"
    assert not rows["fastclr native"]["lacks"]
    assert out.with_suffix(".svg").stat().st_size > 1000
    printed = " ".join(capsys.readouterr().out.split())
    assert "DALI graph, CPU lacks random order of the jitter, exact hue" in printed
    assert len(loader_table([from_json(LoaderReport, found)]).splitlines()) == 3 + len(rows)


@pytest.mark.parametrize("libraries", [turbojpeg.LIBRARIES, ()])
def test_the_decode_limit_counts_no_corrupt_image(tmp_path, monkeypatch, libraries):
    monkeypatch.setattr(turbojpeg, "LIBRARIES", libraries)
    monkeypatch.setattr(turbojpeg, "_bound", [])
    jpeg = simplejpeg.encode_jpeg(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8))
    with BetonWriter(tmp_path / "x.beton", 60) as writer:
        for index in range(60):
            if index % 3 == 0:
                writer.add_raw(np.zeros((40, 40, 3), np.uint8))
            else:
                writer.add_jpeg(jpeg[:-200] if index == 31 else jpeg)
    limit = DecodeLimit("decode limit", tmp_path / "x.beton", 10, 2)
    with limit.open() as reader, pytest.raises(ValueError, match=r"x.beton: sample 31: Premature end"):
        list(limit.epoch(reader))


@pytest.mark.parametrize(
    ("stored", "dali_says", "others_say"),
    [
        ("raw", *2 * ["ValueError: .*x.beton holds raw pixels, and this peer reads JPEGs only"]),
        ("corrupt", "RuntimeError: Failed to decode sample #.*", "OSError: image file is truncated .*"),
    ],
)
def test_why_a_peer_failed_is_one_line(tmp_path, require_package, stored, dali_says, others_say):
    for package in ("nvidia.dali", "lightly"):
        require_package(package)
    pixels, file = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8), tmp_path / "x.beton"
    with BetonWriter(file, 60) as writer:
        for _ in range(60):
            if stored == "raw":
                writer.add_raw(pixels)
            else:
                writer.add_jpeg(simplejpeg.encode_jpeg(pixels)[:-200])
    options = Options((file,), peers=("dali", "lightly", "torchvision"), engines=(), threads=1)
    cases = _cases(options, file, LoaderSettings(16, 1, 4), "full", num_images=60)
    *_, (dali, lightly, torchvision) = measure_in_turn(cases, rounds=1)
    assert re.fullmatch(dali_says, dali.error)
    assert re.fullmatch(others_say, lightly.error)
    assert re.fullmatch(others_say, torchvision.error)


def ffcv_epoch(file: Path) -> list[int]:
    case = FfcvLoader("FFCV", file, 16, False, 50, 2)
    return list(case.epoch(case.open()))


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_stock_ffcv(tiny, require_package):
    """Two pipelines on one field, which FFCV compiles anew for each loader that is made."""
    require_package("ffcv")
    assert call_in_process(ffcv_epoch, tiny, timeout_s=250) == [50, 50, 50]


def test_a_missing_peer_gets_a_row_with_its_command(tiny, tmp_path, capsys, monkeypatch):
    (tmp_path / "missing" / "lightly").mkdir(parents=True)
    (tmp_path / "missing" / "lightly" / "__init__.py").write_text("raise ImportError('not [here]')")
    monkeypatch.syspath_prepend(tmp_path / "missing")
    found = run(tiny, tmp_path / "x.json", "--only", "full", "--peers", "lightly", "--sizes", "16")
    native, lightly = found["results"]["full"]
    check_row(native)
    assert lightly["error"] == "needs the package lightly (not [here]): pip install lightly"
    assert "(not [here]): pip install lightly" in " ".join(capsys.readouterr().out.split())
    assert "not measured" in loader_table([from_json(LoaderReport, found)])
    assert (tmp_path / "x.svg").exists()


@pytest.mark.parametrize("name", ["loader-recompress", "loader-cifar10-32"])
def test_the_table_fits_a_terminal_of_80_columns(name):
    report = load(RESULTS / f"{name}.json", LoaderReport)
    console = Console(width=80)
    with console.capture() as capture:
        console.print(side_by_side_table(report))
    printed = capture.get()
    assert f"{report.decode_limit.low:,.0f}–{report.decode_limit.high:,.0f}" in printed
    assert "…" not in printed


@pytest.mark.slow
def test_scaling(tiny, tmp_path, capsys):
    found = run(tiny, tmp_path / "s.json", "--scaling", "--sizes", "16")
    assert found["benchmark"] == "loader scaling"
    rows = found["rows"]
    assert list(rows) == ["decode limit", "native, two crops", "native, full augmentation"]
    for line in rows.values():
        assert [row["threads"] for row in line] == [1, 2]
        for row in line:
            check_row(row)
    limit, crops = rows["decode limit"], rows["native, two crops"]
    expected = (crops[1]["median"] / crops[0]["median"]) / (limit[1]["median"] / limit[0]["median"])
    assert found["relative_scaling"]["native, two crops"] == pytest.approx(expected)
    assert "native, two crops" in capsys.readouterr().out
    assert (tmp_path / "s.svg").stat().st_size > 1000


def test_several_sizes_give_several_reports(tiny, tmp_path, require_package):
    require_package("nvidia.dali")
    arguments = ["--only", "crops", "--peers", "dali", "--sizes", "16", "24"]
    main([str(tiny), "--threads", "1", "--rounds", "1", "--out", str(tmp_path / "x.json"), *arguments])
    for size in (16, 24):
        found = json.loads((tmp_path / f"x-{size}.json").read_text("utf-8"))
        assert found["settings"]["size"] == size
        assert [row["error"] for row in found["results"]["crops"]] == ["", ""]
        assert found["settings"]["batch_size"] == 160 // 42  # leaves 30 batches to count
        assert (tmp_path / f"x-{size}.svg").exists()


def test_thread_counts():
    assert thread_counts(1) == [1]
    assert thread_counts(4) == [1, 2, 4]
    assert thread_counts(6) == [1, 2, 4, 6]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--engines", "nativ"],
            "invalid choice 'nativ' for argument '--engines'. Expected one of ('native', ",
        ),
        (["--sizes", "4"], "at least 8 pixels"),
        (["--rounds", "0"], "--rounds is 0"),
        (["--out", "x.txt"], "must end in .json"),
        (["--folder", "/no/such"], "no such folder"),
    ],
)
def test_bad_arguments(tiny, capsys, arguments, message):
    assert fastclr(["bench", "loader", str(tiny), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_batch_that_is_too_large(tiny, capsys):
    assert fastclr(["bench", "loader", str(tiny), "--batch-size", "1000"]) == 2
    assert "too few for batches of 1000; lower --batch-size" in capsys.readouterr().err


def test_a_folder_without_classes(tiny, tmp_path, capsys):
    for place in ("empty", "flat"):
        (tmp_path / place).mkdir()
    (tmp_path / "flat" / "1.jpg").touch()
    for place, message in (("empty", "no image in it"), ("flat", "has no class folders")):
        assert fastclr(["bench", "loader", str(tiny), "--folder", str(tmp_path / place)]) == 2
        assert message in capsys.readouterr().err
    assert fastclr(["bench", "convert", str(tmp_path / "empty")]) == 2
    assert "no image in it" in capsys.readouterr().err


def test_a_file_that_is_too_small(tiny_photos, tmp_path, capsys):
    convert(FolderSource(tiny_photos), tmp_path / "small.beton")
    assert fastclr(["bench", "loader", str(tmp_path / "small.beton")]) == 2
    assert "must hold at least 42" in capsys.readouterr().err


def test_the_center_crop_of_an_evaluation(tiny, tmp_path, capsys):
    found = run(tiny, tmp_path / "x.json", "--only", "center", "--sizes", "24", "--peers", "torchvision")
    (row,) = found["results"]["center"]
    assert row["name"] == "fastclr native"
    check_row(row)
    assert "one center crop" in capsys.readouterr().out


def test_spdl(tiny, tmp_path):
    pytest.importorskip("spdl.io")
    found = run(tiny, tmp_path / "x.json", "--only", "crops", "--peers", "spdl", "--sizes", "24")
    _, spdl = found["results"]["crops"]
    assert spdl["name"] == "SPDL, decoded once"
    if "needs the package spdl" not in spdl["error"]:  # as it does without FFmpeg's libraries
        check_row(spdl)


def test_peers_get_the_images_without_restart_markers(tiny, tmp_path):
    with BetonReader(tiny) as reader, without_markers(tiny) as plain, BetonReader(plain) as copy:
        assert plain != tiny
        assert len(copy) == len(reader) == 160
        assert np.array_equal(copy.labels, reader.labels)
        for index in range(len(reader)):
            assert has_restarts(reader.image_bytes(index)) and not has_restarts(copy.image_bytes(index))
            assert np.array_equal(copy[index][0], reader[index][0])
    assert not plain.exists()


def test_a_file_without_markers_is_not_copied(tiny, tmp_path):
    out = tmp_path / "plain.beton"
    convert(FolderSource(tiny.parent / "photos"), out, Encoding(jpeg="recompress", restart="none"))
    with without_markers(out) as same:
        assert same == out
