"""`fastclr bench loss` on the CPU, at sizes that take a second."""

import json

import pytest
import torch

from benchmarks.kernels.loss import Options, correlated_pairs, plain_nt_xent, run
from fastclr.cli.main import main
from fastclr.loss import nt_xent

ROW = {
    *("name", "device", "method", "note", "median_s", "low_s", "high_s", "rounds", "calls", "peak_bytes"),
    *("error", "floor_s", "floor_share"),
}
"""What every row of every in-process benchmark has."""


def test_report_on_a_cpu(tmp_path):
    out = tmp_path / "results" / "loss.json"
    run(Options(rows=(8, 128), width=16, compile=False, rounds=2, turn_s=0.01, device="cpu", out=out))
    report = json.loads(out.read_text())
    assert (
        report["benchmark"] == "loss"
        and report["machine"]["versions"]["torch"] == torch.__version__.split("+")[0]
    )
    assert report["settings"]["device"] == "cpu" and report["settings"]["rows"] == [8, 128]
    assert [group["num_rows"] for group in report["groups"]] == [8, 128]
    for group in report["groups"]:
        rows = {row["name"]: row for row in group["rows"]}
        assert all(row.keys() >= ROW and row["device"] == "cpu" for row in rows.values())
        assert all(row["floor_share"] is None for row in rows.values())  # floors are a GPU's
        for name in ("fastclr fused", "fastclr fused, graph"):
            assert rows[name]["error"] == "needs a CUDA device" and rows[name]["median_s"] is None
        for name in ("fastclr reference", "torch, eager"):
            assert rows[name]["median_s"] > 0 and rows[name]["rounds"] == 2
            assert 0 < rows[name]["gradient_error"] < 1e-4
    assert [target["state"] for target in report["targets"]] == ["not measured"] * 3


def test_lightly_computes_the_same_loss():
    pytest.importorskip("lightly")
    report = run(Options(rows=(32,), width=8, compile=False, rounds=1, turn_s=0.01, device="cpu"))
    (row,) = [row for row in report.groups[0].rows if row.name == "lightly NTXentLoss"]
    assert row.error == "" and row.gradient_error < 1e-4


def test_plain_form_is_nt_xent():
    z = correlated_pairs(20, 12).double()
    torch.testing.assert_close(plain_nt_xent(z, 0.3).double(), nt_xent(z, 0.3), rtol=1e-5, atol=0)


def test_pairs_are_nearer_than_others():
    z = torch.nn.functional.normalize(correlated_pairs(50, 64), dim=1)
    positives = (z[:50] * z[50:]).sum(1)
    assert positives.min() > 0.5 and (z[:50] @ z[50:].T).fill_diagonal_(0).abs().mean() < 0.2


@pytest.mark.parametrize(
    "arguments",
    [("--rows", "7"), ("--rows", "2"), ("--dtype", "int8"), ("--rounds", "0"), ("--out", "x.txt")],
)
def test_bad_arguments_are_named(arguments, capsys):
    assert main(["bench", "loss", *arguments]) == 2
    error = capsys.readouterr().err
    assert arguments[0] in error
    assert "Traceback" not in error


def test_command(tmp_path, capsys):
    out = tmp_path / "loss.json"
    arguments = [
        "--rows",
        "16",
        "--width",
        "8",
        "--no-compile",
        "--rounds",
        "1",
        "--device",
        "cpu",
        "--out",
        str(out),
    ]
    assert main(["bench", "loss", *arguments]) == 0
    printed = capsys.readouterr().out
    assert "on cpu" in printed and "not measured" in printed
    assert json.loads(out.read_text())["settings"]["width"] == 8
