"""A run whose views and loss follow a schedule: its steps, its resumption, and what depends on its sizes."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from support.scheduled_run import changed, write_scheduled_recipe

from fastclr.cli.main import main
from fastclr.config import Config
from fastclr.loss import nt_xent
from fastclr.model import SimCLR, projector, resnet
from fastclr.optim import LARS, warmup_cosine
from fastclr.recipes import load_recipe
from fastclr.train.build import resolve
from fastclr.train.checkpoint import load_checkpoint, load_encoder
from fastclr.train.pretrain import train
from fastclr.train.run import run_identity
from fastclr.train.sinks import read_metrics
from pipelines import BetonReader, ViewLoader, ViewSpec

ROOT = Path(__file__).parents[3]
# 3 steps an epoch, 20 in all: the middles of the epochs are at 0.075, 0.225, 0.375, …
SIZES = [8, 8, 12, 12, 16, 16, 16]
EXACT = ("step", "epoch", "lr", "loss", "accuracy", "entropy", "rankme")
CPU = torch.device("cpu")


@pytest.fixture
def config(tmp_path) -> Config:
    return load_recipe(str(write_scheduled_recipe(tmp_path / "scheduled.toml")))


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_file) -> Path:
    """A run of 20 steps without interruption: its folder."""
    folder = tmp_path_factory.mktemp("scheduled")
    config = load_recipe(str(write_scheduled_recipe(folder / "scheduled.toml")))
    assert train(config, tiny_file, folder / "run").step == 20
    return folder / "run"


def numbers(folder: Path) -> list[list[float]]:
    return [[record[key] for key in EXACT] for record in read_metrics(folder)]


def assert_same_run(ours: Path, theirs: Path) -> None:
    one, other = (load_checkpoint(folder / "last.pt") for folder in (ours, theirs))
    assert one["step"] == other["step"] == 20
    assert all(torch.equal(tensor, other["model"][name]) for name, tensor in one["model"].items())
    for number, state in one["optimizer"]["state"].items():
        assert torch.equal(state["momentum_buffer"], other["optimizer"]["state"][number]["momentum_buffer"])
    assert one["loader"] == other["loader"] and one["identity"] == other["identity"]
    assert torch.equal(one["random"]["cpu"], other["random"]["cpu"])
    assert numbers(ours) == numbers(theirs)
    one, other = (load_encoder(folder)[0].state_dict() for folder in (ours, theirs))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_the_steps_are_those_of_a_loop_by_hand(finished, tiny_file, config):
    """Sizes and jitter by the epoch, the temperature by the step: the same losses and weights, bit for bit."""
    saved = load_checkpoint(finished / "last.pt")
    bfloat16 = saved["identity"]["train.precision"] == "bfloat16"
    torch.manual_seed(0)
    encoder = resnet(10, 0.125, stem="cifar")
    model = SimCLR(encoder, projector(encoder.num_features, num_layers=2, out_dim=16))
    model = model.to(memory_format=torch.channels_last)
    optimizer = LARS(model.parameters(), 0.0, weight_decay=config.optim.weight_decay)
    losses: list[float] = []
    with ViewLoader(tiny_file, 20, views=ViewSpec.simclr(16), seed=0, num_threads=1) as loader:
        for epoch, size in enumerate(SIZES):
            strength = (epoch + 0.5) * 3 / 20
            loader.set_epoch(
                epoch, dataclasses.replace(ViewSpec.simclr(size), jitter_strength=min(1.0, strength))
            )
            for batch in list(loader)[: 20 - len(losses)]:
                assert batch.views.shape == (2, 20, 3, size, size)
                optimizer.param_groups[0]["lr"] = warmup_cosine(
                    len(losses), total=20, warmup=3, peak=20 / 256
                )
                with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
                    _, z = model(batch.views.flatten(0, 1).contiguous(memory_format=torch.channels_last))
                share = len(losses) / 20
                loss = nt_xent(z, 0.1 + (0.3 - 0.1) * (share - 0.0) / (1.0 - 0.0))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
    assert [record["loss"] for record in read_metrics(finished)] == losses
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, saved["model"][name]), name


@pytest.mark.parametrize("step", [4, 6, 8, 12, 19])
def test_it_resumes_where_it_was_interrupted(tmp_path, finished, tiny_file, config, step):
    """After 6 and 12 steps an epoch ends, and the next has another size; the others are in mid-epoch."""

    def crash(record: dict) -> None:
        if record["step"] == step:
            raise KeyboardInterrupt

    config = changed(config, "train", checkpoint_minutes=1e-9)
    with pytest.raises(KeyboardInterrupt):
        train(config, tiny_file, tmp_path / "run", sinks=[crash])
    saved = load_checkpoint(tmp_path / "run" / "last.pt")
    assert saved["step"] == step
    # the loader's state is that of the next batch
    assert saved["loader"]["views"][0]["size"] == SIZES[step // 3]
    again = load_recipe(str(tmp_path / "run"))
    assert again.schedule == config.schedule
    assert train(again, tiny_file, tmp_path / "run").first_step == step
    assert_same_run(tmp_path / "run", finished)


def test_it_resumes_after_sigterm(tmp_path, finished, tiny_file, config):
    def stop(record: dict) -> None:
        if record["step"] in (7, 11):
            os.kill(os.getpid(), signal.SIGTERM)

    steps = [train(config, tiny_file, tmp_path / "run", sinks=[stop]).step for _ in range(3)]
    assert steps == [8, 12, 20]
    assert_same_run(tmp_path / "run", finished)


@pytest.mark.slow
def test_it_resumes_after_sigkill(tmp_path, tiny_file):
    """A process of its own, on the engine native, killed in the second of three sizes."""
    recipe = write_scheduled_recipe(tmp_path / "scheduled.toml")
    command = ["train", str(recipe), str(tiny_file), "--model.width", "0.5", "--data.engine", "native"]
    command += ["--train.checkpoint-minutes", "1e-9"]
    assert main([*command, "--out", str(tmp_path / "straight")]) == 0
    folder = tmp_path / "killed"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-m", "fastclr.cli.main", *command, "--out", str(folder)], env=environment
    )
    wait_for_records(process, folder, 8)
    process.kill()
    process.wait()
    assert 7 <= load_checkpoint(folder / "last.pt")["step"] < 20
    assert main([*command, "--out", str(folder)]) == 0
    assert_same_run(folder, tmp_path / "straight")


def test_a_schedule_is_part_of_the_identity(tmp_path, finished, tiny_file, config, tiny_config):
    other = dataclasses.replace(config, schedule=config.schedule[:1])
    with pytest.raises(
        ValueError, match=r"schedule.views.size was '\{ at = \[0.0, 0.3, 0.6\].*', is now None"
    ):
        train(other, tiny_file, finished)
    with BetonReader(tiny_file) as reader:
        ours, plain = (run_identity(resolve(each, reader, CPU), reader, 1) for each in (config, tiny_config))
    # without a schedule it is what it was before there were schedules
    assert ours.keys() - plain.keys() == {f"schedule.{each.name}" for each in config.schedule}
    assert not any("schedule" in name or "eval" in name for name in plain)


@pytest.mark.parametrize("engine", ["native", "torchvision", "ffcv", "dali"])
def test_every_engine_trains_by_it(tmp_path, finished, tiny_file, config, engine, require_package):
    """`native` has the very crops of `resident`, on which the other tests run."""
    if engine in ("ffcv", "dali"):
        require_package({"ffcv": "ffcv", "dali": "nvidia.dali"}[engine])
    assert train(changed(config, "data", engine=engine), tiny_file, tmp_path / "run").step == 20
    ours, theirs = numbers(tmp_path / "run"), numbers(finished)
    if engine == "native":
        assert ours == theirs
    assert [row[:3] for row in ours] == [row[:3] for row in theirs]
    assert [row[3] for row in ours[:3]] == pytest.approx([row[3] for row in theirs[:3]], rel=0.05)


def on_two_ranks(*argv: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([*command, "-m", "fastclr.cli.main", *argv], env=environment)


@pytest.mark.slow
def test_ranks_follow_it(tmp_path, tiny_file):
    """Two ranks take the steps of one process, and are continued bit for bit after SIGTERM."""
    recipe = write_scheduled_recipe(tmp_path / "scheduled.toml")
    command = [
        "train",
        str(recipe),
        str(tiny_file),
        "--train.precision",
        "float32",
        "--optim.base-lr",
        "0.05",
    ]
    assert main([*command, "--out", str(tmp_path / "one")]) == 0
    assert on_two_ranks(*command, "--out", str(tmp_path / "two")).wait(120) == 0
    for one, two in zip(numbers(tmp_path / "one"), numbers(tmp_path / "two"), strict=True):
        assert two[:3] == one[:3]
        assert two[3:] == pytest.approx(one[3:], rel=1e-3, abs=0.051)
        assert two[3] == pytest.approx(one[3], rel=1e-4)
        assert two[6] == pytest.approx(one[6], rel=1e-3)
    process = on_two_ranks(*command, "--out", str(tmp_path / "stopped"))
    wait_for_records(process, tmp_path / "stopped", 7)
    process.send_signal(signal.SIGTERM)
    process.wait(120)
    assert 7 <= load_checkpoint(tmp_path / "stopped" / "last.pt")["step"] < 20
    assert on_two_ranks(*command, "--out", str(tmp_path / "stopped")).wait(120) == 0
    assert_same_run(tmp_path / "stopped", tmp_path / "two")


def wait_for_records(process: subprocess.Popen, folder: Path, number: int) -> None:
    deadline = time.monotonic() + 120
    metrics = folder / "metrics.jsonl"
    while not metrics.exists() or metrics.read_text().count("\n") < number:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)


def test_micro_batches_follow_it(tmp_path, tiny_file, config):
    config = changed(config, "train", micro_batch=10)

    def stop(record: dict) -> None:
        if record["step"] == 7:
            os.kill(os.getpid(), signal.SIGTERM)

    train(config, tiny_file, tmp_path / "straight")
    train(config, tiny_file, tmp_path / "run", sinks=[stop])
    train(config, tiny_file, tmp_path / "run")
    assert_same_run(tmp_path / "run", tmp_path / "straight")


@pytest.mark.slow
def test_a_compiled_run_is_the_eager_run(tmp_path, tiny_file, config, monkeypatch):
    """The model is compiled once for each of the three sizes, and none of them is dynamic."""
    shapes = []

    def backend(graph: torch.fx.GraphModule, inputs: list):
        shapes.append([tuple(each.shape) for each in inputs if each.ndim == 4 and each.shape[:2] == (40, 3)])
        return graph

    compiled = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda model, **options: compiled(model, backend=backend, **options)
    )
    config = changed(config, "train", precision="float32", epochs=3)
    torch._dynamo.reset()
    train(changed(config, "train", compile=True), tiny_file, tmp_path / "compiled")
    train(config, tiny_file, tmp_path / "eager")
    assert numbers(tmp_path / "compiled") == numbers(tmp_path / "eager")
    assert [size for sizes in shapes for size in sizes] == [(40, 3, size, size) for size in (8, 12, 16)]
