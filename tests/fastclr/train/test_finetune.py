"""Fine-tuning: the same numbers as a loop by hand, exact resume, and the parts that stay as they are."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from support.tiny_run import write_tiny_file

from fastclr.finetune_config import FinetuneConfig, FinetuneSettings
from fastclr.model import Classifier, projector, resnet
from fastclr.recipes import load_finetune_recipe, recipe_names
from fastclr.train import finetune as module
from fastclr.train.checkpoint import load_checkpoint, load_encoder
from fastclr.train.classifier_file import load_classifier
from fastclr.train.finetune import finetune
from fastclr.train.pretrain import train
from fastclr.train.projector_file import load_projector
from fastclr.train.session import learning_rate
from fastclr.train.sinks import read_metrics
from pipelines import BetonReader, ViewLoader, ViewSpec


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("labelled")
    return write_tiny_file(folder / "a.beton", 79), write_tiny_file(folder / "b.beton", 41)


@pytest.fixture(scope="module")
def run(tmp_path_factory, files) -> Path:
    from support.tiny_run import write_tiny_recipe

    from fastclr.recipes import load_recipe

    folder = tmp_path_factory.mktemp("runs")
    config = load_recipe(str(write_tiny_recipe(folder / "tiny.toml")))
    train(config, files[0], folder / "run")
    return folder / "run"


@pytest.fixture
def config() -> FinetuneConfig:
    config = load_finetune_recipe("finetune")
    return replace(
        config,
        train=replace(
            config.train,
            epochs=4,
            batch_size=20,
            threads=1,
            device="cpu",
            precision="float32",
            log_every=1,
            eval_epochs=2,
        ),
    )


def with_settings(config: FinetuneConfig, **changes: object) -> FinetuneConfig:
    return replace(config, finetune=FinetuneSettings(**changes))


def test_a_loop_by_hand_gives_the_same_weights(tmp_path, files, run, config):
    outcome, report = finetune(config, run, *files, tmp_path / "out")
    assert outcome.step == outcome.total_steps == 79 * 4 // 20 + 1

    encoder, meta = load_encoder(run)
    torch.manual_seed(0)
    model = Classifier(encoder, [], 5).to(memory_format=torch.channels_last).train()
    params = [
        {"params": [p for p in model.parameters() if p.ndim >= 2], "weight_decay": 0.0},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.SGD(params, 0.1, momentum=0.9, nesterov=True)
    rate = learning_rate(config, 79)
    spec = ViewSpec.crop_flip(16, mean=meta["mean"], std=meta["std"])
    step = 0
    with ViewLoader(
        files[0], 20, views=spec, engine="resident", num_threads=1, dtype=torch.float32
    ) as loader:
        while step < outcome.total_steps:
            for batch in loader:
                if step == outcome.total_steps:
                    break
                for group in optimizer.param_groups:
                    group["lr"] = rate(step)
                optimizer.zero_grad(set_to_none=True)
                F.cross_entropy(model(batch.views[0]), batch.labels).backward()
                optimizer.step()
                step += 1
    ours, meta = load_classifier(tmp_path / "out")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, ours.state_dict()[name]), name
    assert meta["num_classes"] == 5 and meta["from_layer"] == 0

    # the accuracy is that of the exported classifier on the centre of each test image
    model.eval()
    center = ViewSpec.center(16, mean=spec.mean, std=spec.std)
    with ViewLoader(files[1], 41, views=center, order="sequential", drop_last=False) as loader:
        (batch,) = list(loader)
    correct = (model(batch.views[0].float()).argmax(1) == batch.labels).float().mean().item()
    assert report["test_top1"] == pytest.approx(correct, abs=1e-6)
    assert report["test_top5"] == 1.0
    assert report["images"] == 79


def test_stopped_and_continued_is_the_same_run(tmp_path, files, run, config, monkeypatch):
    finetune(config, run, *files, tmp_path / "straight")
    take_step = module.Finetuning.take_step
    steps = 0

    def stop_at_7(self: module.Finetuning, batch: object, lr: float) -> object:
        nonlocal steps
        steps += 1
        if steps == 7:
            os.kill(os.getpid(), signal.SIGTERM)
        return take_step(self, batch, lr)

    monkeypatch.setattr(module.Finetuning, "take_step", stop_at_7)
    outcome, report = finetune(config, run, *files, tmp_path / "stopped")
    assert outcome.stopped_by == signal.SIGTERM and "test_top1" not in report
    outcome, _ = finetune(config, run, *files, tmp_path / "stopped")
    assert outcome.first_step == 7 and outcome.step == outcome.total_steps
    one, other = (load_checkpoint(tmp_path / name / "last.pt") for name in ("straight", "stopped"))
    for name, tensor in one["model"].items():
        assert torch.equal(tensor, other["model"][name]), name
    assert [r["loss"] for r in read_metrics(tmp_path / "straight")] == [
        r["loss"] for r in read_metrics(tmp_path / "stopped")
    ]


def test_head_only_leaves_the_encoder_alone(tmp_path, files, run, config):
    finetune(with_settings(config, head_only=True, from_layer=1), run, *files, tmp_path / "out")
    before, _ = load_encoder(run)
    head, _ = load_projector(run)
    after, _ = load_classifier(tmp_path / "out")
    for name, tensor in before.state_dict().items():
        assert torch.equal(tensor, after.encoder.state_dict()[name]), name
    for name, tensor in head[:1].state_dict().items():
        assert torch.equal(tensor, after.layers.state_dict()[name]), name
    assert after.fc.bias.abs().min() > 0, "the classifier has learnt"


def test_from_a_layer_starts_with_that_layer(tmp_path, files, run, config):
    config = with_settings(replace(config, optim=replace(config.optim, base_lr=0.0)), from_layer=1)
    finetune(config, run, *files, tmp_path / "out")
    head, _ = load_projector(run)
    after, _ = load_classifier(tmp_path / "out")
    assert torch.equal(head[0][0].weight, after.layers[0][0].weight)
    assert after.fc.in_features == head[0][0].out_features


def test_from_scratch_has_fresh_weights(tmp_path, files, run, config):
    config = with_settings(replace(config, optim=replace(config.optim, base_lr=0.0)), from_scratch=True)
    finetune(config, run, *files, tmp_path / "out")
    trained, _ = load_encoder(run)
    fresh, _ = load_encoder(tmp_path / "out")
    assert not torch.equal(trained.conv1.weight, fresh.conv1.weight)


def test_the_classifier_learns(tmp_path, files, run, config):
    config = replace(config, train=replace(config.train, epochs=30), optim=replace(config.optim, base_lr=1.0))
    _, report = finetune(config, run, *files, tmp_path / "out")
    assert report["test_top1"] > 0.8, "chance is 0.2"


def test_another_subset_is_another_run(tmp_path, files, run, config):
    config = replace(config, train=replace(config.train, batch_size=10))
    finetune(with_settings(config, fraction=0.5), run, *files, tmp_path / "out")
    with pytest.raises(ValueError, match=r"finetune\.subset_seed was 0, is now 1"):
        finetune(with_settings(config, fraction=0.5, subset_seed=1), run, *files, tmp_path / "out")


def test_a_run_without_projector(tmp_path, files, run, config):
    lonely = tmp_path / "encoder.safetensors"
    lonely.write_bytes((run / "encoder.safetensors").read_bytes())
    with pytest.raises(FileNotFoundError, match="no projection head"):
        finetune(with_settings(config, from_layer=1), lonely, *files, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_bad_settings(tmp_path, files, run, config):
    def fails(token: str, bad: FinetuneConfig) -> None:
        with pytest.raises(ValueError, match=token):
            finetune(bad, run, *files, tmp_path / "out")
        assert not (tmp_path / "out").exists()

    fails("has 2 layers", with_settings(config, from_layer=3))
    fails("leaves none", with_settings(config, fraction=0.01))
    fails("micro_batch", replace(config, train=replace(config.train, micro_batch=5)))
    fails("of which 10 are chosen", with_settings(config, fraction=0.125))
    with pytest.raises(ValueError, match="fraction is 0"):
        FinetuneSettings(fraction=0)
    with pytest.raises(ValueError, match="random features"):
        FinetuneSettings(head_only=True, from_scratch=True)


def test_classes_that_differ(tmp_path, run, config, files):
    other = tmp_path / "other.beton"
    with BetonReader(files[1]) as reader:
        from pipelines.beton import BetonWriter

        with BetonWriter(other, 3) as writer:
            for k in range(3):
                writer.add_raw(reader[k][0], label=k + 5)
    with pytest.raises(ValueError, match="only 0…4"):
        finetune(config, run, files[0], other, tmp_path / "out")


def test_the_published_recipes():
    """Settings of the papers, see shared facts in the recipes' headers."""
    assert set(recipe_names(FinetuneConfig)) >= {
        *("finetune-v1-1pct", "finetune-v1-10pct", "supervised", "finetune"),
        *("finetune-v2-1pct", "finetune-v2-10pct", "finetune-v2-100pct"),
    }
    v1, v2 = (load_finetune_recipe(f"finetune-{name}-1pct") for name in ("v1", "v2"))
    assert (v1.finetune.fraction, v1.finetune.from_layer, v1.train.epochs) == (0.01, 0, 60)
    assert (v1.optim.name, v1.optim.base_lr, v1.optim.scaling, v1.train.batch_size) == (
        "sgd",
        0.05,
        "linear",
        4096,
    )
    assert (v2.finetune.from_layer, v2.optim.name, v2.optim.base_lr, v2.optim.scaling) == (
        1,
        "lars",
        0.005,
        "sqrt",
    )
    assert v1.optim.weight_decay == v2.optim.weight_decay == v1.optim.warmup_epochs == 0
    assert load_finetune_recipe("finetune-v1-10pct").train.epochs == 30


def test_a_projector_survives_its_file(run):
    head, meta = load_projector(run)
    assert meta["kwargs"] == {
        "in_dim": 64,
        "head": "nonlinear",
        "num_layers": 2,
        "hidden_dim": None,
        "out_dim": 16,
    }
    state = load_checkpoint(run / "last.pt")["model"]
    for name, tensor in head.state_dict().items():
        assert torch.equal(tensor, state[f"projector.{name}"])


def test_a_corrupt_projector(run, tmp_path):
    data = bytearray((run / "projector.safetensors").read_bytes())
    data[-5] ^= 1
    (tmp_path / "projector.safetensors").write_bytes(data)
    with pytest.raises(ValueError, match="checksum"):
        load_projector(tmp_path)


def test_layers_of_a_classifier():
    encoder = resnet(10, width=0.125, image_size=16)
    with torch.no_grad():
        model = Classifier(encoder, projector(encoder.num_features, num_layers=3)[:2], 7).eval()
        x = torch.randn(3, 3, 16, 16)
        assert torch.equal(model(x), model.fc(model.layers(encoder(x))))


@pytest.mark.slow
def test_two_ranks_compute_what_one_does(tmp_path, files, run):
    """With global batch norm and gradients averaged over the ranks; also the accuracy on shared test images."""
    data = ["--train", files[0], "--test", files[1]]
    small = ["--train.batch-size", "20", "--train.epochs", "3", "--train.precision", "float32"]
    small += ["--train.threads", "1", "--train.log-every", "1", "--train.device", "cpu"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    for ranks in (1, 2):
        launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        out = ["--out", tmp_path / f"{ranks}"]
        command = ["-m", "fastclr.cli.main", "finetune", run, "finetune-v2-100pct", *data, *small, *out]
        subprocess.run([sys.executable, *launch, *command], env=environment, check=True, timeout=120)
    one, two = (read_metrics(tmp_path / f"{ranks}") for ranks in (1, 2))
    assert [r["loss"] for r in two] == pytest.approx([r["loss"] for r in one], rel=1e-5)
    assert two[-1]["test_top1"] == one[-1]["test_top1"]
