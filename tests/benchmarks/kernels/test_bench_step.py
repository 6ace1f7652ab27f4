"""`fastclr bench step` on the CPU: one process, a file, and two ranks."""

import json
import os
import subprocess
import sys

import pytest
import torch
from support.tiny_run import write_tiny_file

from benchmarks.kernels.step import Options, run
from benchmarks.kernels.step_parts import FedStep, Shape, Step, flops_per_image
from fastclr.cli.main import main
from fastclr.train.distributed import Ranks

TINY = {"only": ("resnet18-32",), "batch_size": 2, "size": 16, "rounds": 1, "calls": 1, "device": "cpu"}


def test_report_on_a_cpu():
    report = run(Options(**TINY))
    (group,) = report.groups
    rows = {row.name: row for row in group.rows}
    assert {row.device for row in rows.values()} == {"cpu"}
    for name in ("step", "step with loader", "encoder and head", "loss", "optimizer", "augment"):
        assert rows[name].error == "" and rows[name].images_per_s == pytest.approx(2 / rows[name].median_s)
    assert rows["step, graph"].error == "needs a CUDA device"
    assert rows["step with loader"].note == "resident engine on drawn images"
    assert rows["loss"].step_share == pytest.approx(rows["loss"].median_s / rows["step"].median_s)
    assert group.shares.keys() == {
        *("data wait", "slower with loader", "batch norm sync", "loss", "optimizer")
    }
    assert 0 < group.shares["data wait"] < 1 and 0 <= group.shares["slower with loader"] < 1
    assert group.shares["batch norm sync"] == 0.0
    assert [target.state for target in report.targets] == ["not measured"] * 2


def test_a_file_is_read_by_the_engine_that_is_asked_for(tmp_path):
    file = write_tiny_file(tmp_path / "tiny.beton", 8)
    report = run(Options(**TINY, file=file, threads=1))
    rows = {row.name: row for row in report.groups[0].rows}
    assert rows["step with loader"].error == ""
    assert rows["step with loader"].note == "native engine on tiny.beton"


def test_a_file_that_is_too_small_costs_one_row(tmp_path):
    file = write_tiny_file(tmp_path / "tiny.beton", 1)
    report = run(Options(**TINY, file=file, threads=1))
    rows = {row.name: row for row in report.groups[0].rows}
    assert "1 samples do not fill one batch of 2" in rows["step with loader"].error
    assert rows["step"].median_s > 0 and report.groups[0].shares["data wait"] is None


@pytest.mark.parametrize(
    "arguments", [("--batch-size", "1"), ("--only", "resnet34"), ("--precision", "int8"), ("--rounds", "0")]
)
def test_bad_arguments_are_named(arguments, capsys):
    assert main(["bench", "step", *arguments]) == 2
    error = capsys.readouterr().err
    assert arguments[0] in error
    assert "Traceback" not in error


def test_a_missing_file_is_one_line(capsys):
    assert main(["bench", "step", "--file", "nowhere.beton"]) == 2
    assert capsys.readouterr().err == "fastclr bench: --file nowhere.beton: no such file\n"


def test_waiting_for_data_is_the_time_of_the_request():
    step = Step(
        Shape("resnet18-32", 10, 0.125, 16, 2),
        torch.device("cpu"),
        torch.float32,
        channels_last=True,
        compiled=False,
        ranks=Ranks(),
    )

    now = 0.0

    def slow_batches():
        nonlocal now
        for number in range(8):
            now += 0.5 if number < FedStep.WARM else 0.03
            yield torch.randn(4, 3, 16, 16)

    fed = FedStep(step, slow_batches(), clock=lambda: now)
    for _ in range(8):
        fed()
    assert fed.wait_s() == pytest.approx(0.03)


def test_flops_of_resnet50():
    """He et al. 2015 count 3.8·10⁹ multiply-adds forward, 4.09·10⁹ in this form; backward is twice that."""
    shape = Shape("resnet50-224", 50, 1.0, 224, 1)
    two_views_forward_backward = 2 * 3 * 2 * 4.09e9
    assert flops_per_image(shape) == pytest.approx(two_views_forward_backward, rel=0.03)


def test_a_step_moves_the_weights_and_its_pieces_do_not():
    shape = Shape("resnet18-32", 10, 0.125, 16, 2)
    step = Step(shape, torch.device("cpu"), torch.float32, channels_last=True, compiled=False, ranks=Ranks())
    before = [p.detach().clone() for p in step.params]
    step.encoder()
    step.loss()
    step.make_optimizer()()
    assert all(p.equal(old) for p, old in zip(step.params, before, strict=True))
    step.whole()
    moved = [not p.equal(old) for p, old in zip(step.params, before, strict=True)]
    assert sum(moved) > 0.75 * len(moved)  # not those behind the last gamma of a block, which starts at 0


@pytest.mark.slow
def test_two_ranks_measure_the_norms_synchronisation(tmp_path):
    out = tmp_path / "step.json"
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
        *(
            "-m",
            "fastclr.cli.main",
            "bench",
            "step",
            "--only",
            "resnet18-32",
            "--batch-size",
            "2",
            "--size",
            "16",
        ),
        *("--rounds", "1", "--calls", "1", "--device", "cpu", "--out", str(out)),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=150, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(out.read_text())
    assert report["settings"]["world_size"] == 2
    (group,) = report["groups"]
    rows = {row["name"]: row for row in group["rows"]}
    assert rows["step"]["images_per_s"] == pytest.approx(4 / rows["step"]["median_s"])
    assert rows["step, local norms"]["median_s"] > 0 and 0 <= group["shares"]["batch norm sync"] < 1
    assert done.stdout.count("share of a step") == 1  # rank 0 speaks alone
