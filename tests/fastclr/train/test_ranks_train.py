"""Training on ranks: W ranks compute the same as one, and a job survives signals and dying processes.

The first part compares one step in float64; the rest are real jobs of torchrun, over gloo.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from support.ranks import run_ranks
from support.tiny_run import write_tiny_file, write_tiny_recipe
from torch import nn

from fastclr.cli import main as cli
from fastclr.evaluate import knn_accuracy
from fastclr.evaluate.encoder import FrozenEncoder
from fastclr.model import SimCLR, projector, resnet
from fastclr.train.checkpoint import load_checkpoint, load_encoder
from fastclr.train.distributed import (
    RankLost,
    Ranks,
    all_reduce_max,
    data_parallel,
    mean_over_ranks,
    run_on_main_and_broadcast,
)
from fastclr.train.grad_cache import cached_backward
from fastclr.train.pretrain import loss_function
from pipelines import BetonReader, TwoViewLoader, ViewSpec

ROOT = Path(__file__).parents[3]
TIMEOUT_S = 120
BATCH = 16


def tiny_model() -> SimCLR:
    torch.manual_seed(0)
    encoder = resnet(10, 0.125, image_size=16)
    model = SimCLR(encoder, projector(encoder.num_features, num_layers=2, out_dim=16)).double()
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            nn.init.uniform_(module.weight, 0.5, 1.5)  # a last gamma of 0 would hide the blocks behind it
    return model


def two_steps(
    rank: int,
    world_size: int,
    file: Path,
    loss_name: str,
    micro_batch: int | None,
    order: torch.Tensor | None = None,
) -> dict[str, Any]:
    """Loss, gradients and running statistics of the first two batches; the weights stay as they are."""
    from fastclr.config import LossConfig

    ranks = Ranks(rank, world_size)
    model = tiny_model()
    forward = data_parallel(model, ranks, accumulates=micro_batch is not None)
    loss_of = loss_function(LossConfig(name=loss_name, temperature=0.2), ranks.group)
    losses, gradients = [], []
    per_rank = BATCH // world_size
    with TwoViewLoader(
        file, per_rank, spec=ViewSpec.simclr(16), rank=rank, world_size=world_size, num_threads=1
    ) as loader:
        for batch, _ in zip(loader, range(2), strict=False):
            views = batch.views.double() if order is None else batch.views.double()[:, order]
            model.zero_grad(set_to_none=True)
            if micro_batch is None:
                _, z = forward(views.flatten(0, 1))
                loss = loss_of(z)
                loss.backward()
            else:
                loss, _, z = cached_backward(forward, loss_of, views, micro_batch // world_size)
            losses.append(mean_over_ranks(loss.detach(), ranks))
            gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
    return {"losses": losses, "gradients": gradients, "buffers": dict(model.named_buffers())}


CASES = [("nt_xent", None), ("margin_triplet", None), ("nt_xent", 8)]
"""Loss and micro-batch over all ranks: that of 8 is 4 + 4 images on two ranks, 2 on each of four."""


def worker(rank: int, world_size: int, file: Path) -> dict[str, Any]:
    steps = [two_steps(rank, world_size, file, *case) for case in CASES]
    return {"steps": steps, "together": together(rank, world_size)}


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_take_the_steps_of_one(tiny_file, world_size):
    """Loss, every gradient, and batch norm's running statistics: at 1e-9 in float64."""
    # a micro-batch is some images of each rank: one process must take them in that order to norm the same ones
    order = torch.arange(BATCH).view(world_size, BATCH // 8, -1).transpose(0, 1).flatten()
    ones = [two_steps(0, 1, tiny_file, *case, order=order if case[1] else None) for case in CASES]
    for rank, seen in enumerate(run_ranks(worker, world_size, tiny_file)):
        for many, one in zip(seen["steps"], ones, strict=True):
            check_equal(many, one)
        assert seen["together"] == expected_together(rank, world_size)


def check_equal(got: dict[str, Any], want: dict[str, Any]) -> None:
    for step in range(2):
        torch.testing.assert_close(got["losses"][step], want["losses"][step], rtol=1e-9, atol=0)
        for name, gradient in want["gradients"][step].items():
            error = (got["gradients"][step][name] - gradient).norm() / gradient.norm()
            assert error < 1e-9, (step, name, error)
    for name, buffer in want["buffers"].items():
        torch.testing.assert_close(got["buffers"][name], buffer, rtol=1e-9, atol=1e-12)


def together(rank: int, world_size: int) -> dict[str, Any]:
    ranks = Ranks(rank, world_size)

    def fails() -> None:
        raise FileExistsError("there is a run already")

    try:
        run_on_main_and_broadcast(ranks, fails)
        error: Exception | None = None
    except (FileExistsError, RankLost) as caught:
        error = caught
    return {
        "of rank 0": run_on_main_and_broadcast(ranks, lambda: {"rank": rank}),
        "error": f"{type(error).__name__}: {error}",
        "agreed": all_reduce_max(ranks, 15 * (rank == 1), 0, rank),
        "mean": mean_over_ranks(torch.tensor([float(rank), 1.0]), ranks).tolist(),
    }


def expected_together(rank: int, world_size: int) -> dict[str, Any]:
    return {
        "of rank 0": {"rank": 0},
        "error": "RankLost: rank 0 failed" if rank else "FileExistsError: there is a run already",
        "agreed": (15, 0, world_size - 1),
        "mean": [(world_size - 1) / 2, 1.0],
    }


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    write_tiny_recipe(folder / "tiny.toml")
    return folder


def arguments(place: Path, file: Path, out: str, *more: str) -> list[str]:
    # a small rate: rounding, which differs with the number of ranks, is not blown up by the steps
    fixed = ["--train.precision", "float32", "--optim.base-lr", "0.05", "--train.checkpoint-minutes", "1e-9"]
    # ⌊79·10/20⌋ + 1 = 40 steps: enough to be stopped twice
    fixed += ["--train.epochs", "10"]
    return [
        *("train", str(place / "tiny.toml"), str(file), "--out", str(place / out)),
        *fixed,
        *more,
    ]


def torchrun(
    world_size: int, *argv: str, restarts: int = 0, program: tuple[str, ...] = ()
) -> subprocess.Popen:
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world_size}"),
        *(f"--max-restarts={restarts}", *(program or ("-m", "fastclr.cli.main")), *argv),
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen) -> tuple[str, str]:
    try:
        return process.communicate(timeout=TIMEOUT_S)
    finally:
        process.kill()


def records(folder: Path) -> list[dict[str, Any]]:
    path = folder / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def wait_for_step(process: subprocess.Popen, folder: Path, step: int) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while len(records(folder)) < step:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)


def numbers(folder: Path) -> list[list[float]]:
    return [[r[k] for k in ("step", "epoch", "lr", "loss", "accuracy", "entropy")] for r in records(folder)]


@pytest.fixture(scope="module")
def straight(place, tiny_file) -> Path:
    """A run of 40 steps on two ranks without interruption."""
    process = torchrun(2, *arguments(place, tiny_file, "straight"))
    out, err = finish(process)
    assert process.returncode == 0, err
    assert out.count("done: step 40 of 40") == 1, "rank 0 speaks, alone"
    assert "done" not in err
    assert [r["step"] for r in records(place / "straight")] == list(range(1, 41))
    return place / "straight"


def test_a_killed_rank_is_restarted(place, tiny_file, straight):
    """After SIGKILL in mid-epoch torchrun restarts the job, which continues by itself: bit for bit the same run."""
    process = torchrun(2, *arguments(place, tiny_file, "killed"), restarts=1)
    wait_for_step(process, place / "killed", 5)  # an epoch is 3 steps
    (victim,) = [
        child
        for child in psutil.Process(process.pid).children(recursive=True)
        if child.environ().get("RANK") == "1"
    ]
    victim.kill()
    at = len(records(place / "killed"))
    assert at < 40
    _, err = finish(process)
    assert process.returncode == 0, err
    assert "exitcode: -9) local_rank: 1" in err, "torchrun names the rank"

    killed, whole = load_checkpoint(place / "killed" / "last.pt"), load_checkpoint(straight / "last.pt")
    assert killed["step"] == whole["step"] == 40
    for name, tensor in whole["model"].items():
        assert torch.equal(tensor, killed["model"][name]), name
    for number, state in whole["optimizer"]["state"].items():
        assert torch.equal(state["momentum_buffer"], killed["optimizer"]["state"][number]["momentum_buffer"])
    assert killed["loader"] == whole["loader"]
    assert numbers(place / "killed") == numbers(straight)


def test_held_out_images_on_ranks(place, tiny_file, straight):
    """kNN of shares of unequal size is that of all images on one process, and the run is the same run."""
    val = write_tiny_file(place / "val.beton", num_images=41, seed=0)
    process = torchrun(2, *arguments(place, tiny_file, "val", "--val", str(val), "--train.eval-epochs", "3"))
    _, err = finish(process)
    assert process.returncode == 0, err
    accuracies = {r["step"]: r["val_knn"] for r in records(place / "val") if "val_knn" in r}
    # three epochs of 79 images end in step ⌈3·79/20⌉ = 12, six in 24, nine in 36
    assert list(accuracies) == [12, 24, 36, 40]
    model = FrozenEncoder.from_meta(*load_encoder(place / "val"), torch.device("cpu"), autocast=None)
    with BetonReader(tiny_file) as bank, BetonReader(val) as queries:
        pair = [*model.features(bank, model.center()), *model.features(queries, model.center())]
    assert accuracies[40] == knn_accuracy(*pair, k=79) > 0.4, "chance is 0.2"

    with_val, without = load_checkpoint(place / "val" / "last.pt"), load_checkpoint(straight / "last.pt")
    for name, tensor in without["model"].items():
        assert torch.equal(tensor, with_val["model"][name]), name
    assert with_val["loader"] == without["loader"]
    assert numbers(place / "val") == numbers(straight)


def test_a_signal_to_all_processes(place, tiny_file):
    """Clusters send SIGTERM to the ranks and to torchrun, which forwards it: the ranks save nevertheless."""
    rarely = [word.replace("1e-9", "100") for word in arguments(place, tiny_file, "swept")]
    process = torchrun(2, *rarely)
    wait_for_step(process, place / "swept", 5)
    for each in (process, *psutil.Process(process.pid).children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            each.send_signal(signal.SIGTERM)
    finish(process)
    assert load_checkpoint(place / "swept" / "last.pt")["step"] == records(place / "swept")[-1]["step"] >= 5


def test_a_restart_does_not_take_up_another_run(place, tiny_file, straight):
    before = (straight / "last.pt").read_bytes()
    process = torchrun(2, *arguments(place, tiny_file, "straight", "--train.seed", "1"), restarts=1)
    _, err = finish(process)
    assert process.returncode != 0
    refusal = (
        f"fastclr train: rank 0 of 2: {straight} holds a run with other settings: train.seed was 0, is now 1"
    )
    assert err.count(refusal) == 2, "the first time and when it was started again"
    assert (straight / "last.pt").read_bytes() == before


def test_a_run_that_is_complete_says_so(place, tiny_file, straight):
    before = (straight / "last.pt").read_bytes()
    process = torchrun(2, *arguments(place, tiny_file, "straight"))
    out, err = finish(process)
    assert process.returncode == 0, err
    assert out.count("which is complete: step 40 of 40") == 1
    assert (straight / "last.pt").read_bytes() == before


def test_micro_batches_are_as_large_on_other_ranks(place, tiny_file, capsys):
    """Batch norm spans the ranks: it sees 2 × 5 images at a time, which is 10 on one rank."""
    folder, short = "micro", ("--train.epochs", "1", "--optim.warmup-epochs", "0")
    process = torchrun(2, *arguments(place, tiny_file, folder, *short, "--train.micro-batch", "5"))
    _, err = finish(process)
    assert process.returncode == 0, err
    again = arguments(place, tiny_file, folder, *short, "--train.micro-batch")
    assert cli.main([*again, "5"]) == 2
    assert "train.micro_batch times the ranks was 10, is now 5" in capsys.readouterr().err
    assert cli.main([*again, "10"]) == 0


def test_four_ranks_two_ranks_one(place, tiny_file, straight, capsys):
    """SIGTERM to torchrun: the ranks agree on a step, rank 0 saves; the run goes on with fewer of them."""
    folder = place / "shrinking"
    process = torchrun(4, *arguments(place, tiny_file, "shrinking"))
    wait_for_step(process, folder, 2)
    process.terminate()
    out, err = finish(process)
    first = load_checkpoint(folder / "last.pt")["step"]
    assert 2 <= first < 40
    assert f"stopped by SIGTERM at step {first} of 40; continue with: fastclr train " in out
    assert "fastclr train:" not in err, "no rank lost another"

    process = torchrun(2, *arguments(place, tiny_file, "shrinking"))
    wait_for_step(process, folder, first + 2)
    process.terminate()
    finish(process)
    second = load_checkpoint(folder / "last.pt")["step"]
    assert first + 2 <= second < 40

    assert cli.main(arguments(place, tiny_file, "shrinking")) == 0
    assert "done: step 40 of 40" in capsys.readouterr().out
    for got, want in zip(numbers(folder), numbers(straight), strict=True):
        assert got[:3] == want[:3]
        assert got[3] == pytest.approx(want[3], rel=1e-3), "batches differ by 10 % and more"


NAMES_ITS_THREADS = """
import sys
from pathlib import Path
from fastclr.cli.main import main
status = main(sys.argv[1:])
names = [task.read_text().strip() for task in Path("/proc/self/task").glob("*/comm")]
sys.stdout.write(f"threads: {' '.join(names)}\\n")  # in one piece: the ranks write at the same time
sys.exit(status)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the names of threads from /proc")
def test_no_thread_of_the_group_is_left(place, tiny_file):
    """gloo's threads, alive while Python ends, abort about one process in thirty."""
    (place / "threads.py").write_text(NAMES_ITS_THREADS)
    process = torchrun(2, *arguments(place, tiny_file, "threads"), program=(str(place / "threads.py"),))
    out, err = finish(process)
    assert process.returncode == 0, err
    lines = [line for line in out.splitlines() if line.startswith("threads: ")]
    assert len(lines) == 2
    assert "python" in lines[0]
    assert "gloo" not in "".join(lines)


ONE_RANK_HAS_NO_DATA = """
import os, sys
from fastclr.cli.main import main
argv = sys.argv[1:]
if os.environ["RANK"] == "1":
    argv[2] = "missing.beton"
sys.exit(main(argv))
"""


def test_a_failing_rank_ends_the_job(place, tiny_file):
    (place / "program.py").write_text(ONE_RANK_HAS_NO_DATA)
    start = time.monotonic()
    process = torchrun(2, *arguments(place, tiny_file, "failing"), program=(str(place / "program.py"),))
    _, err = finish(process)
    assert time.monotonic() - start < 60
    assert process.returncode != 0
    assert "fastclr train: rank 1 of 2: No such file or directory: missing.beton\n" in err
    root_cause = err[err.index("Root Cause") :]
    assert "rank      : 1" in root_cause
    assert "rank 1 of 2: No such file or directory: missing.beton" in root_cause


def test_rank_0_alone_says_what_is_wrong(place, tiny_file):
    process = torchrun(2, *arguments(place, tiny_file, "odd", "--train.batch-size", "19"))
    _, err = finish(process)
    assert process.returncode != 0
    lines = [line for line in err.splitlines() if line.startswith("fastclr train:")]
    wanted = "rank 0 of 2: train.batch_size is 19 and is shared by 2 ranks; make it a multiple"
    assert lines == [f"fastclr train: {wanted}"]
    assert not (place / "odd").exists()
