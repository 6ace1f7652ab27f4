"""Training on two views of different specs: SimCLR with the asymmetric augmentation of BYOL."""

import dataclasses
import os
import signal

import pytest
import torch
from support.tiny_run import TINY_RECIPE, write_tiny_file

from benchmarks.bottleneck.recommend import setup_of_run
from fastclr.config import Config
from fastclr.loss import nt_xent
from fastclr.model import SimCLR, projector, resnet
from fastclr.optim import LARS, warmup_cosine
from fastclr.recipes import load_recipe
from fastclr.train.build import check_views, make_loader, resolve
from fastclr.train.checkpoint import load_checkpoint, load_encoder, save_checkpoint
from fastclr.train.distributed import Ranks
from fastclr.train.pretrain import train
from fastclr.train.sinks import read_metrics
from pipelines import BetonReader, ViewLoader, ViewSpec
from pipelines.views.presets import byol, dino

PAIR = """
[[views]]
size = 24
num_views = 1
blur_p = 1.0
[[views]]
size = 24
num_views = 1
blur_p = 0.1
solarize_p = 0.2
"""
# at 24 pixels the blur has three taps; at the 16 of the tiny recipe it would have one, and do nothing
SPECS = (
    ViewSpec.simclr(24, num_views=1, blur_p=1.0),
    ViewSpec.simclr(24, num_views=1, blur_p=0.1, solarize_p=0.2),
)


@pytest.fixture
def pair_config(tmp_path) -> Config:
    path = tmp_path / "pair.toml"
    path.write_text(TINY_RECIPE.replace("[views]\nsize = 16\n", PAIR))
    return load_recipe(str(path))


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_file):
    """A run of 20 steps: its folder."""
    folder = tmp_path_factory.mktemp("pair")
    (folder / "pair.toml").write_text(TINY_RECIPE.replace("[views]\nsize = 16\n", PAIR))
    assert train(load_recipe(str(folder / "pair.toml")), tiny_file, folder / "run").step == 20
    return folder / "run"


def test_the_run_is_that_of_a_loader_with_these_specs(finished, tiny_file, pair_config):
    """A run written out by hand gives the same losses and weights, bit for bit; its views are those of make_loader."""
    assert pair_config.views == SPECS
    saved = load_checkpoint(finished / "last.pt")
    bfloat16 = saved["identity"]["train.precision"] == "bfloat16"
    torch.manual_seed(0)
    encoder = resnet(10, 0.125, stem="cifar")
    model = SimCLR(encoder, projector(encoder.num_features, num_layers=2, out_dim=16))
    model = model.to(memory_format=torch.channels_last)
    optimizer = LARS(model.parameters(), 0.0, weight_decay=pair_config.optim.weight_decay)
    losses: list[float] = []
    with (
        BetonReader(tiny_file) as reader,
        ViewLoader(reader, 20, views=SPECS, seed=0, num_threads=1) as loader,
    ):
        config = resolve(pair_config, reader, torch.device("cpu"))
        with make_loader(config, reader, Ranks(), torch.device("cpu")) as of_the_run:
            first = next(iter(of_the_run)).views
        while len(losses) < 20:
            for batch in loader:
                if not losses:
                    assert batch.views.shape == (2, 20, 3, 24, 24)
                    assert torch.equal(batch.views, first)
                optimizer.param_groups[0]["lr"] = warmup_cosine(
                    len(losses), total=20, warmup=3, peak=20 / 256
                )
                with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
                    _, z = model(batch.views.flatten(0, 1).contiguous(memory_format=torch.channels_last))
                loss = nt_xent(z, 0.2)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
                if len(losses) == 20:
                    break
    assert [record["loss"] for record in read_metrics(finished)] == losses
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, saved["model"][name]), name
    assert load_encoder(finished)[1]["size"] == 24


def test_it_resumes_bit_for_bit(finished, tmp_path, tiny_file, pair_config):
    """The run that was stopped is continued by its own folder as the recipe."""

    def stop(record: dict) -> None:
        if record["step"] == 7:
            os.kill(os.getpid(), signal.SIGTERM)

    folder = tmp_path / "run"
    assert 7 <= train(pair_config, tiny_file, folder, sinks=[stop]).step < 20
    again = load_recipe(str(folder))
    assert again.views == SPECS
    assert (folder / "config.toml").read_text().count("[[views]]") == 2
    outcome = train(again, tiny_file, folder)
    assert 7 <= outcome.first_step < outcome.step == 20
    one, other = (load_checkpoint(place / "last.pt") for place in (finished, folder))
    assert one["loader"] == other["loader"] and one["identity"] == other["identity"]
    assert all(torch.equal(tensor, other["model"][name]) for name, tensor in one["model"].items())
    losses = [[record["loss"] for record in read_metrics(place)] for place in (finished, folder)]
    assert losses[0] == losses[1]


def test_other_views_are_another_run(finished, tmp_path, tiny_file, pair_config):
    def with_views(*views: ViewSpec) -> Config:
        return dataclasses.replace(pair_config, views=views)

    sharper = dataclasses.replace(SPECS[1], solarize_p=0.5)
    with pytest.raises(ValueError, match=r"settings: views\[1\].solarize_p was 0.2, is now 0.5; take"):
        train(with_views(SPECS[0], sharper), tiny_file, finished)
    with pytest.raises(ValueError, match=r"settings: the number of \[\[views\]\] was 2, is now 1; take"):
        train(with_views(ViewSpec.simclr(24)), tiny_file, finished)
    # a later version may have settings that this one did not save
    state = load_checkpoint(finished / "last.pt")
    del state["identity"]["views[0].solarize_threshold"]
    save_checkpoint(tmp_path / "last.pt", state)
    (tmp_path / "metrics.jsonl").write_bytes((finished / "metrics.jsonl").read_bytes())
    assert train(pair_config, tiny_file, tmp_path).step == 20
    changed = dataclasses.replace(SPECS[0], solarize_threshold=0.25)
    with pytest.raises(ValueError, match=r"views\[0\].solarize_threshold was 0.5, is now 0.25"):
        train(with_views(changed, SPECS[1]), tiny_file, tmp_path)


def test_what_else_reads_the_views(tmp_path, tiny_file, pair_config):
    """GradCache, kNN on held-out images, and the setup of `bench bottleneck`."""
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.2, 0.2)
    config = dataclasses.replace(
        pair_config,
        views=tuple(dataclasses.replace(spec, mean=mean, std=std) for spec in SPECS),
        train=dataclasses.replace(pair_config.train, epochs=1, micro_batch=10, eval_epochs=1),
    )
    val = write_tiny_file(tmp_path / "val.beton", 20, seed=1)
    assert train(config, tiny_file, tmp_path / "run", val=val).step == 4
    assert 0 <= read_metrics(tmp_path / "run")[-1]["val_knn"] <= 1
    _, meta = load_encoder(tmp_path / "run")
    assert (meta["size"], meta["mean"], meta["std"]) == (24, list(mean), list(std))
    with BetonReader(tiny_file) as reader:
        resolved = resolve(config, reader, torch.device("cpu"))
        assert resolved.model.stem == "cifar"
        assert setup_of_run(resolved, reader).size == 24


@pytest.mark.parametrize(
    ("views", "got"),
    [
        (ViewSpec(32, num_views=3), "3 views of 32 px"),
        (ViewSpec(32, num_views=1), "1 view of 32 px"),
        ((ViewSpec(32), ViewSpec(32)), "4 views of 32 px"),
        ((ViewSpec(32, num_views=1), ViewSpec(24, num_views=1)), "1 view of 32 px and 1 view of 24 px"),
        (dino(), "2 views of 224 px and 8 views of 96 px"),
    ],
)
def test_views_that_are_no_pair(tmp_path, tiny_file, tiny_config, views, got):
    config = dataclasses.replace(tiny_config, views=views)
    with pytest.raises(ValueError, match=rf"has {got} per image, .*num_views.*ViewLoader") as caught:
        train(config, tiny_file, tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_pairs():
    for views in (ViewSpec(32), (ViewSpec(32, num_views=1),) * 2, byol()):
        check_views(Config(views=views))
