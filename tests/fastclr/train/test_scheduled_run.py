"""A run whose views and loss follow a schedule: its steps, its resumption, and what depends on its sizes."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from support.tiny_run import TINY_RECIPE, write_tiny_file

from fastclr.cli.main import main
from fastclr.config import Config, ModelConfig
from fastclr.loss import nt_xent
from fastclr.model import SimCLR, projector, resnet
from fastclr.optim import LARS, warmup_cosine
from fastclr.recipes import load_recipe
from fastclr.schedule import Scheduled
from fastclr.train.build import check_graph, check_sizes, resolve, view_sizes
from fastclr.train.checkpoint import load_checkpoint, load_encoder
from fastclr.train.distributed import Ranks
from fastclr.train.pretrain import train
from fastclr.train.run import run_identity
from fastclr.train.sinks import read_metrics
from pipelines import BetonReader, ViewLoader, ViewSpec

ROOT = Path(__file__).parents[3]
SCHEDULE = """
[schedule]
views.size = { at = [0.0, 0.3, 0.6], values = [8, 12, 16] }
views.jitter_strength = { at = [0.0, 1.0], values = [0.0, 1.0], kind = "linear" }
loss.temperature = { at = [0.0, 1.0], values = [0.1, 0.3], kind = "linear" }
"""
# 3 steps an epoch, 20 in all: the middles of the epochs are at 0.075, 0.225, 0.375, …
SIZES = [8, 8, 12, 12, 16, 16, 16]
EXACT = ("step", "epoch", "lr", "loss", "accuracy", "entropy", "rankme")
CPU = torch.device("cpu")


def write_recipe(path: Path, text: str = TINY_RECIPE + SCHEDULE) -> Path:
    path.write_text(text)
    return path


@pytest.fixture
def config(tmp_path) -> Config:
    return load_recipe(str(write_recipe(tmp_path / "scheduled.toml")))


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_file) -> Path:
    """A run of 20 steps without interruption: its folder."""
    folder = tmp_path_factory.mktemp("scheduled")
    config = load_recipe(str(write_recipe(folder / "scheduled.toml")))
    assert train(config, tiny_file, folder / "run").step == 20
    return folder / "run"


def changed(config: Config, section: str, **values) -> Config:
    return dataclasses.replace(config, **{section: dataclasses.replace(getattr(config, section), **values)})


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
    recipe = write_recipe(tmp_path / "scheduled.toml")
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
    recipe = write_recipe(tmp_path / "scheduled.toml")
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


def test_what_a_captured_step_cannot_do():
    cuda, steps = torch.device("cuda", 0), Scheduled("loss.temperature", (0.0, 0.5), (0.1, 0.2))
    config = changed(Config(schedule=(steps,)), "train", graph=True)
    check_graph(config, cuda, Ranks())
    linear = dataclasses.replace(config, schedule=(dataclasses.replace(steps, kind="linear"),))
    with pytest.raises(
        ValueError, match=r"train.graph needs settings of the loss scheduled in steps; leave it out"
    ):
        check_graph(linear, cuda, Ranks())


def test_too_many_sizes_to_compile(config):
    linear = Scheduled("views.size", (0.0, 1.0), (8, 16), "linear")
    config = dataclasses.replace(changed(config, "train", epochs=40, compile=True), schedule=(linear,))
    assert len(view_sizes(config, 79)) == 9
    with pytest.raises(
        ValueError, match=r"the schedule has 9 sizes of views, and train.compile .* at most 8 times"
    ):
        check_sizes(config, resnet(10, 0.125, stem="cifar"), 79)
    even = dataclasses.replace(config, schedule=(dataclasses.replace(linear, multiple_of=2),))
    check_sizes(even, resnet(10, 0.125, stem="cifar"), 79)
    with pytest.raises(ValueError, match=r"has 5 sizes"):
        check_sizes(changed(even, "train", micro_batch=10), resnet(10, 0.125, stem="cifar"), 79)


def record_pixels(pixels: list[int], _: torch.nn.Module, inputs: tuple[torch.Tensor]) -> None:
    pixels.append(inputs[0].shape[-1])


def test_one_pixel_in_bfloat16_is_refused(tmp_path, tiny_file, config):
    """The stems divide the size by 1, 2 and 4, and the stages before the last by 4."""
    for stem, size in (("cifar", 4), ("stride2", 8), ("imagenet", 16)):
        half = changed(changed(config, "model", stem=stem), "train", precision="bfloat16", device="cpu")
        encoder = resnet(10, 0.125, stem=stem)
        for smallest, too_small in ((size, True), (size + 1, False)):
            sizes = Scheduled("views.size", (0.0, 0.5), (smallest, 40))
            each = dataclasses.replace(half, views=ViewSpec.simclr(40), schedule=(sizes,))
            pixels: list[int] = []
            hook = partial(record_pixels, pixels)
            handle = encoder.layer4.register_forward_pre_hook(hook)
            encoder.eval()(torch.zeros(1, 3, smallest, smallest))
            handle.remove()
            assert (pixels == [1]) == too_small
            check_sizes(changed(each, "train", precision="float32"), encoder, 79)
            if too_small:
                with pytest.raises(
                    ValueError, match=f"views of {size} px leave one pixel .* train.precision float32"
                ):
                    check_sizes(each, encoder, 79)
            else:
                check_sizes(each, encoder, 79)


def test_the_encoder_is_that_of_the_largest_size(tmp_path, tiny_file, config, monkeypatch):
    """The stem of `auto`, the memory and the metadata, also where the sizes fall."""
    schedule = (Scheduled("views.size", (0.0, 0.5), (40, 24)),)
    config = dataclasses.replace(config, views=ViewSpec.simclr(40), schedule=schedule)
    with BetonReader(tiny_file) as reader:
        resolved = resolve(config, reader, CPU)
    assert resolved.model.stem == "imagenet"
    seen = []
    monkeypatch.setattr(
        "fastclr.train.build.activation_bytes", lambda model, size, half: seen.append(size) or 1
    )
    train(changed(config, "train", epochs=1), tiny_file, tmp_path / "run")
    assert seen == [40]
    encoder, meta = load_encoder(tmp_path / "run")
    assert (meta["size"], meta["kwargs"]["stem"]) == (40, "imagenet")
    assert encoder(torch.zeros(1, 3, 40, 40)).shape == (1, encoder.num_features)


def test_an_encoder_of_one_size_is_refused_at_the_start(tmp_path, tiny_file, config, require_package):
    require_package("timm")
    vit = dataclasses.replace(config, model=ModelConfig(encoder="timm:vit_tiny_patch16_224", head_layers=2))
    with pytest.raises(ValueError, match=r"timm:vit_tiny_patch16_224 takes no images of 8 px"):
        train(vit, tiny_file, tmp_path / "run")
    unscheduled = changed(dataclasses.replace(vit, schedule=()), "train", eval_size=32)
    with pytest.raises(ValueError, match=r"takes no images of 32 px"):
        train(unscheduled, tiny_file, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_run_says_its_schedule(tmp_path, tiny_file, config, capsys):
    short = changed(config, "train", precision="float32", eval_size=20)
    train(short, tiny_file, tmp_path / "run")
    assert capsys.readouterr().out.splitlines()[0] == (
        "79 images, 5 epochs, 20 steps of 20; ResNet-10 ×0.125 at 8, 12, 16 px in float32 on cpu; "
        "engine resident, 1 loader thread; schedule: loss.temperature 0.1 at 0 % to 0.3 at 100 %; "
        "views.jitter_strength 0 at 0 % to 1 at 100 %; views.size 8, 12 from 30 % on, 16 from 60 % on; "
        "evaluated at 20 px"
    )


def test_the_preview_shows_the_views_of_an_epoch(tmp_path, tiny_file, config, capsys, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "fastclr.preview.draw_samples", lambda reader, specs, **_: seen.append(specs[0].size) or [None]
    )
    monkeypatch.setattr("fastclr.preview.contact_sheet", lambda samples, title: seen.append(title) or Sheet)
    monkeypatch.setattr("fastclr.preview.save_picture", lambda *_: None)
    Sheet = type("Sheet", (), {"width": 1, "height": 1})
    recipe = ["--recipe", str(tmp_path / "scheduled.toml"), "--out", str(tmp_path / "v.png")]
    for epoch in (1, 2):
        assert main(["preview", str(tiny_file), *recipe, "--epoch", str(epoch)]) == 0
    assert [each for each in seen if isinstance(each, int)] == [8, 12]
    assert "views of 12 px, seed 0, epoch 2" in seen[-1]
    out = capsys.readouterr().out
    assert "schedule: loss.temperature" in out and "views of 8, 12, 16 px in the whole run" in out


def test_the_size_of_evaluations(tmp_path, tiny_file, tiny_config):
    """A recipe's constant reaches metadata, online kNN and `evaluate`; `--size` overrides it."""
    val = write_tiny_file(tmp_path / "val.beton", 41, seed=1)
    config = changed(tiny_config, "train", epochs=1, eval_size=24, eval_epochs=1, precision="float32")
    folder = tmp_path / "run"
    train(config, tiny_file, folder, val=val)
    assert load_encoder(folder)[1]["size"] == 24
    assert load_recipe(str(folder)).train.eval_size == 24

    def evaluated(*more: str) -> dict:
        files = ["--train", str(tiny_file), "--test", str(val), "--epochs", "0", "--precision", "float32"]
        assert main(["evaluate", str(folder), *files, "--device", "cpu", *more]) == 0
        return json.loads((folder / "evaluate.json").read_text())

    default = evaluated()
    assert default["size"] == 24
    assert default["knn"]["top1"] == read_metrics(folder)[-1]["val_knn"]
    other = evaluated("--size", "16")
    assert (other["size"], other["encoder"]["size"]) == (16, 24)
    trained_size = tmp_path / "default"
    train(changed(config, "train", eval_size=None), tiny_file, trained_size, val=val)
    assert other["knn"]["top1"] == read_metrics(trained_size)[-1]["val_knn"]
    # it is no part of the identity: the same run, whose weights do not depend on it
    assert train(changed(config, "train", eval_size=None), tiny_file, folder).first_step == 4
    for size in ("0", "5000"):
        assert main(["evaluate", str(folder), "--train", "a", "--test", "b", "--size", size]) == 2
    with pytest.raises(ValueError, match=r"train.eval_size is 0"):
        changed(config, "train", eval_size=0)
