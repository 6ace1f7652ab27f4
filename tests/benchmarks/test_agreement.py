"""How far engines are from torchvision: differences that are known, and the command."""

import json

import numpy as np
import pytest
from tiny_run import write_tiny_file

from benchmarks import agreement
from benchmarks.agreement import agreement_table, compare, main
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
    assert (row["inside"], row["ring"]) == (2, 13)
    assert row["mean"] == pytest.approx(15 / (2 * 4 * 75))
    missing = {"name": "dali", "error": "not installed"}
    assert agreement_table({"results": [row, missing]}).splitlines()[2:] == [
        "| `native` | 2 | 13 | 0.0250 |",
        "| `dali` | not measured | not measured | not measured |",
    ]


def test_command(tiny_file, tmp_path, capsys):
    out = tmp_path / "a.json"
    main([str(tiny_file), "--engines", "native", "resident", "--size", "24", "--out", str(out)])
    rows = json.loads(out.read_text())["results"]
    assert [row["name"] for row in rows] == ["native", "resident"]
    assert all(row["inside"] <= 1 and row["ring"] <= 1 and row["mean"] <= 0.02 for row in rows)
    assert "| `resident` |" in capsys.readouterr().out
