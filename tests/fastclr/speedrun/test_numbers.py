"""Operations of a recipe, epochs that fit a budget, and z-tests, against arithmetic by hand."""

import tomllib
from dataclasses import replace
from itertools import count

import pytest
import torch
from support.tiny_run import write_tiny_file, write_tiny_recipe

from fastclr.config import Config, DataConfig, LossConfig, ModelConfig, OptimConfig, TrainConfig
from fastclr.recipes import from_table, load_recipe, recipe_names
from fastclr.speedrun.fit import StepTimes, fit_epochs, predicted_s, time_steps
from fastclr.speedrun.flop import run_pflop, stage_flop, step_flop
from fastclr.speedrun.rungs import find_rung, load_rungs
from fastclr.speedrun.stages import stages
from fastclr.speedrun.statistics import Sample, p_value, z_of_difference, z_of_target
from fastclr.speedrun.tables import with_stem
from fastclr.speedrun.unlabelled import UnlabelledReader
from fastclr.train.build import resolve
from pipelines.views import ViewSpec


def test_flop_of_resnet_18_on_cifar():
    """0.555 G multiplications of a view forward; three times that with the backward pass; two operations each."""
    config = with_stem(load_recipe("cifar10-rn18"))
    views = 2 * config.train.batch_size
    loss = 6 * views**2 * config.model.proj_dim  # z·zᵀ forward, again backward, and once more times z
    features = 512
    head = 2 * features * features + features * config.model.proj_dim
    # the first convolution has no gradient of its input
    first = 32 * 32 * 64 * 27
    encoder = (step_flop(config, 32) - loss) / views / 2 - 3 * head
    assert (encoder + first) / 3 == pytest.approx(0.5554e9, rel=0.001)
    assert run_pflop(config, 50_000) == pytest.approx(333.3, rel=0.001)


def test_flop_of_a_head_by_hand():
    """Without convolutions that matter: the difference between two heads is their matrix products."""
    one, other = (
        Config(
            views=ViewSpec.simclr(32),
            model=ModelConfig(depth=10, stem="cifar", head_layers=2, proj_hidden_dim=hidden, proj_dim=64),
            train=TrainConfig(batch_size=128),
        )
        for hidden in (512, 1024)
    )
    # 512 more hidden units: 512 inputs and 64 outputs of each, three products of two operations, 256 views
    assert step_flop(other, 32) - step_flop(one, 32) == 256 * 3 * 2 * 512 * (512 + 64)


def test_stages_of_a_schedule():
    text = "[views]\nsize = 32\n[model]\ndepth = 10\nstem = 'cifar'\n[train]\nepochs = 10\nbatch_size = 256\n"
    text += "eval_size = 28\n[schedule]\nviews.size = {at = [0.0, 0.5], values = [16, 32]}\n"
    config = from_table(tomllib.loads(text))
    small, large = stage_flop(config, 50_000)
    # 1954 steps in epochs of 195, of which the last one is short
    assert (small.size, small.fraction) == (16, 5 * 195 / 1954)
    assert (large.size, large.fraction) == (32, 1 - 5 * 195 / 1954)
    assert small.flop == step_flop(config, 16) < large.flop / 3.5
    assert run_pflop(config, 50_000) == pytest.approx((975 * small.flop + 979 * large.flop) / 1e15, rel=1e-12)
    assert config.eval_size == 28
    assert [(s.size, s.fraction) for s in stages(replace(config, schedule=()), 50_000)] == [(32, 1.0)]


RECIPE = Config(
    data=DataConfig(),
    loss=LossConfig(),
    optim=OptimConfig(warmup_epochs=2),
    train=TrainConfig(epochs=20, batch_size=100),
)


@pytest.mark.parametrize(
    ("budget_s", "epochs"),
    [
        (
            1000,
            23,
        ),  # 960 s less 30 of start-up are 930; an epoch of 40 steps takes 40, and a run has one step more
        (75, 1),
        (3000, 71),  # more than the recipe has
    ],
)
def test_epochs_that_fit(budget_s, epochs):
    times = StepTimes(30.0, [1.0])
    fitted = fit_epochs(RECIPE, 4000, times, budget_s)
    assert fitted.train.epochs == epochs
    assert fitted.optim.warmup_epochs == pytest.approx(2 * epochs / 20)
    assert predicted_s(fitted, 4000, times) == 30 + 40 * epochs + 1


def test_a_budget_below_one_epoch():
    with pytest.raises(ValueError, match=r"takes 40 CPU seconds, and the budget has 18"):
        fit_epochs(RECIPE, 4000, StepTimes(30.0, [1.0]), 50)


def test_steps_are_timed_by_the_clock_of_the_process(tmp_path):
    config = load_recipe(str(write_tiny_recipe(tmp_path / "tiny.toml")))
    ticks = count(100.0, 0.5)
    with UnlabelledReader(write_tiny_file(tmp_path / "t.beton")) as reader:
        config = resolve(replace(config, data=DataConfig(threads=1)), reader, torch.device("cpu"))
        times = time_steps(config, reader, 0.0, clock=lambda: next(ticks))
    # the clock is read before the first timed step and, from the twentieth on, twice a step
    assert times == StepTimes(100.0, [1.0 / 20])


def test_z_and_p():
    assert p_value(2.33) == pytest.approx(0.0099, abs=1e-4)
    sample, previous = Sample((0.61, 0.63)), Sample((0.58, 0.60, 0.62))
    assert (sample.mean, sample.sd) == (pytest.approx(0.62), pytest.approx(0.02**0.5 / 10))
    assert z_of_target(sample, 0.6, 0.02) == pytest.approx(0.02 * 2**0.5 / 0.02)
    assert z_of_difference(sample, previous, 0.02) == pytest.approx(0.02 / (0.02 * (1 / 2 + 1 / 3) ** 0.5))
    assert Sample((0.5,)).sd is None
    # accuracies that agree by chance do not make σ zero: at least an image in ten thousand
    assert z_of_target(sample, 0.6, 0.0) == pytest.approx(0.02 * 2**0.5 / 1e-4)


def test_rungs_of_the_ladder():
    from benchmarks.speedruns import FOLDER

    rungs = load_rungs(FOLDER / "rungs.toml")
    assert list(rungs) == [
        *("cifar10-20cpu", "cifar10-cpu-50", "cifar10-85", "cifar10-90", "cifar10-linear92", "cifar100-65"),
        *("stl10", "imagenette", "imagenet100"),
        *(f"imagenet-{epochs}" for epochs in (10, 16, 30, 50, 100, 65)),
    ]
    assert {rung.recipe for rung in rungs.values()} <= set(recipe_names())
    for rung in rungs.values():
        config = load_recipe(rung.recipe)
        model = f"resnet-{config.model.depth}"
        assert rung.encoder in ("any", model)
        if rung.epochs is not None:
            assert config.train.epochs == rung.epochs
        # rules 6 and issue: n of the machine
        assert rung.seeds == {0: 5, 8: 1}.get(rung.gpus, rung.seeds)
    with pytest.raises(ValueError, match="did you mean cifar10-90"):
        find_rung(rungs, "cifar10-9")


def test_a_bad_rung_is_named(tmp_path):
    path = tmp_path / "rungs.toml"
    path.write_text('[[rung]]\nid = "x"\ncolour = 3\n')
    with pytest.raises(ValueError, match="colour"):
        load_rungs(path)
    path.write_text('[[rung]]\nid = "x"\n')
    with pytest.raises(ValueError, match="missing"):
        load_rungs(path)
    path.write_text("no = toml = at all")
    with pytest.raises(ValueError, match=r"rungs\.toml"):
        load_rungs(path)
