"""`fastclr doctor`: every row says what it is, and one that can't run how to change that."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import simplejpeg

from fastclr import doctor, speeds
from fastclr.cli.main import main
from fastclr.speeds import decode_rate, disk_speed, drawn_jpeg
from pipelines import BetonReader, BetonWriter
from pipelines.convert import Encoding, FolderSource, convert
from pipelines.engines import ENGINES
from pipelines.engines.native import turbojpeg
from pipelines.errors import EngineUnavailable

NONE_INTACT = "a drawn image: none of the first 2 of x.beton is an intact JPEG"


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    monkeypatch.setattr(speeds, "DISK_BYTES", 1 << 22)


def rows(capsys, *arguments: str) -> dict[tuple[str, str], dict]:
    assert main(["doctor", "--json", *arguments]) == 0
    return {(row["group"], row["name"]): row for row in json.loads(capsys.readouterr().out)}


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux")
def test_it_ends_on_one_processor():
    """With a numba whose threads are TBB's, a process that also forks workers once waited for ever at its exit."""
    pinned = "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]); "
    run = "from fastclr.cli.main import main; main(['doctor', '--json'])"
    done = subprocess.run(
        [sys.executable, "-c", pinned + run], capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[1]["detail"] == "1"


def test_json(capsys):
    found = rows(capsys)
    groups = list(dict.fromkeys(group for group, _ in found))
    assert groups == ["machine", "packages", "engines", "kernels", "speed"]
    assert {name for group, name in found if group == "engines"} >= set(ENGINES)
    for row in found.values():
        assert row["ok"] is not bool(row["fix"]), row  # a fix for what can't run, and for nothing else
        assert row["detail"]
    for engine in ("native", "resident", "torchvision"):
        assert found["engines", engine]["detail"] == "runs"
    assert "images/s" in found["speed", "decoder, 1 thread"]["detail"]
    assert "MB/s" in found["speed", "disk"]["detail"]


def test_tables(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert "This machine can train on " in printed
    for word in ("machine", "packages", "engines", "kernels", "speed", "native", "torch", "images/s"):
        assert word in printed


def test_of_a_file(capsys, tiny_photos, tmp_path):
    convert(FolderSource(tiny_photos), tmp_path / "tiny.beton", Encoding())
    found = rows(capsys, "--file", str(tmp_path / "tiny.beton"))
    assert "40 images of tiny.beton" in found["speed", "decoder, 1 thread"]["detail"]


@pytest.mark.parametrize(("num_intact", "says"), [(3, "3 images of x.beton"), (0, NONE_INTACT)])
def test_only_intact_jpegs_are_decoded(tmp_path, num_intact, says):
    """A raw image and a truncated one, on which a decoding thread would end, come first."""
    with BetonWriter(tmp_path / "x.beton", 2 + num_intact) as writer:
        writer.add_raw(np.zeros((8, 8, 3), np.uint8))
        for jpeg in [drawn_jpeg()[:-2000], *num_intact * [drawn_jpeg()]]:
            writer.add_jpeg(jpeg)
    with BetonReader(tmp_path / "x.beton") as reader:
        one, *_ = doctor._speeds(reader)
    assert one.ok
    rate, _, what = one.detail.partition(" images/s, ")
    assert what == says
    assert int(rate.replace(",", "")) > 20


def test_a_missing_file(capsys):
    assert main(["doctor", "--file", "/no/such.beton"]) == 2
    assert "/no/such.beton" in capsys.readouterr().err


def test_a_machine_without_libturbojpeg(capsys, monkeypatch):
    monkeypatch.setattr(turbojpeg, "LIBRARIES", ())
    monkeypatch.setattr(turbojpeg, "_bound", [])
    row = rows(capsys)["packages", "libturbojpeg"]
    assert not row["ok"]
    assert row["fix"] == "apt-get install libturbojpeg0-dev"


def test_a_missing_engine_has_one_command(capsys, monkeypatch):
    def missing(*arguments, **options):
        raise EngineUnavailable("engine dali needs NVIDIA DALI (no module): pip install 'fastclr[dali]'")

    def broken(*arguments, **options):
        raise RuntimeError("symbol not found")

    monkeypatch.setitem(ENGINES, "dali", missing)
    monkeypatch.setitem(ENGINES, "ffcv", broken)
    monkeypatch.setattr(doctor, "_dali_fix", lambda: "pip install 'fastclr[dali]'")
    found = rows(capsys)
    dali, ffcv = found["engines", "dali"], found["engines", "ffcv"]
    assert not dali["ok"] and dali["fix"] == "pip install 'fastclr[dali]'"
    assert dali["detail"] == "engine dali needs NVIDIA DALI (no module)"
    assert not ffcv["ok"] and "pip install 'fastclr[ffcv]'" in ffcv["fix"]
    assert ffcv["detail"] == "symbol not found"
    assert found["engines", "native"]["ok"]


def test_a_missing_package(capsys, monkeypatch):
    version = doctor.package_version
    monkeypatch.setattr(doctor, "package_version", lambda name: None if name == "lightly" else version(name))
    lightly = rows(capsys)["packages", "lightly"]
    assert (lightly["ok"], lightly["detail"], lightly["fix"]) == (
        False,
        "not installed",
        "pip install lightly",
    )


def test_where_the_compiled_code_is_kept(monkeypatch):
    row = doctor._compiled_code()
    assert row.ok
    assert os.environ["NUMBA_CACHE_DIR"] in row.detail
    monkeypatch.setattr(doctor, "cache_folder", lambda function: None)
    row = doctor._compiled_code()
    assert not row.ok
    assert "NUMBA_CACHE_DIR" in row.fix


def test_without_a_temporary_directory_the_other_rows_are_shown(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    found = {(check.group, check.name): check for check in doctor.examine()}
    for name in ENGINES:
        assert "TMPDIR" in found["engines", name].fix
    assert not found["speed", "disk"].ok
    assert found["speed", "decoder, 1 thread"].ok


def test_kernels_on_a_gpu_without_a_compiler(capsys, monkeypatch):
    reason = "Triton cannot start (no gcc); it needs a C compiler: apt-get install gcc"
    monkeypatch.setattr(doctor, "why_no_triton", lambda: reason)

    def unavailable() -> str:
        raise ValueError(f"it can't run here: {reason}")

    monkeypatch.setattr(doctor.torch.cuda, "is_available", lambda: True)
    for name in ("_augment_on_gpu", "_nt_xent_on_gpu", "_lars_on_gpu"):
        monkeypatch.setattr(doctor, name, unavailable)
    found = list(doctor._kernels())[2:]
    assert [check.name for check in found] == ["augmentation on the GPU", "NT-Xent, fused", "LARS, fused"]
    for check in found:
        assert check.fix == "apt-get install gcc"
        assert check.detail.endswith("it needs a C compiler")


def test_the_drawn_image():
    assert simplejpeg.decode_jpeg_header(drawn_jpeg()) == (375, 500, "YCbCr", "420")
    assert 20 < decode_rate([drawn_jpeg()], threads=2, seconds=0.2) < 50_000


def test_the_disk_reads_a_whole_small_file(tmp_path):
    (tmp_path / "small").write_bytes(bytes(1000))
    assert "in sequence" in disk_speed(tmp_path / "small")
