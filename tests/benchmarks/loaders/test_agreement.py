"""How far engines are from torchvision: differences that are known, and the command."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from support.tiny_run import write_tiny_file

from benchmarks.core.machine import Machine
from benchmarks.loaders import agreement
from benchmarks.loaders.agreement import Options, agreement_table, compare, main, unmeasured
from benchmarks.loaders.report import AgreementReport, AgreementRow, AgreementSettings
from pipelines import BetonReader


@pytest.fixture
def tiny_file(tmp_path):
    return write_tiny_file(tmp_path / "tiny.beton", 30)


def test_differences_inside_and_at_the_border(tiny_file, monkeypatch):
    expected = [np.full((2, 3, 5, 5, 3), 100, np.uint8), np.full((2, 1, 5, 5, 3), 7, np.uint8)]
    found = [batch.copy() for batch in expected]
    found[0][1, 2, 3, 3, 0] = 98
    found[1][0, 0, 4, 1, 2] = 20
    monkeypatch.setattr(agreement, "crops", lambda *_: found)
    with BetonReader(tiny_file) as reader:
        row = compare(reader, "native", 5, expected)
    assert (row.inside, row.ring) == (2, 13)
    assert row.mean == pytest.approx(15 / (2 * 4 * 75))
    missing = AgreementRow("dali", "not installed")
    report = AgreementReport(Machine(), AgreementSettings("cpu"), [row, missing])
    assert agreement_table([report, unmeasured("cuda")]).splitlines()[2:] == [
        "| `native` | 2 | 13 | 0.0250 |",
        "| `dali` | not measured | not measured | not measured |",
        "| `resident`, on a GPU | not measured | not measured | not measured |",
        "| `dali`, on a GPU | not measured | not measured | not measured |",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "a.csv"], "must end in .json"),
        pytest.param(
            ["--device", "cuda"],
            "torch sees no GPU here",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU"),
        ),
    ],
)
def test_bad_arguments(tiny_file, arguments, message):
    with pytest.raises(ValueError, match=message):
        main([str(tiny_file), *arguments])


def test_what_is_wrong_is_one_line(tmp_path):
    command = [sys.executable, "-m", "benchmarks.loaders.agreement", str(tmp_path / "none.beton")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("benchmarks.loaders.agreement: ") and done.stderr.count("\n") == 1
    assert "none.beton" in done.stderr


def test_engines_that_crop_on_the_cpu_are_not_measured_on_a_gpu(monkeypatch):
    monkeypatch.setattr(agreement, "pick_device", lambda *_: None)
    with pytest.raises(ValueError, match="engine ffcv crops on the CPU, whatever the device"):
        Options(Path("x.beton"), engines=("resident", "ffcv"), device="cuda")


def test_command(tiny_file, tmp_path, capsys):
    out = tmp_path / "a.json"
    main([str(tiny_file), "--engines", "native", "resident", "--size", "24", "--out", str(out)])
    rows = json.loads(out.read_text())["results"]
    assert [row["name"] for row in rows] == ["native", "resident"]
    assert all(row["inside"] <= 1 and row["ring"] <= 1 and row["mean"] <= 0.02 for row in rows)
    assert "| `resident` |" in capsys.readouterr().out
