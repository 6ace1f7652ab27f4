"""The number of epochs is fitted to a time, which an injected clock measures."""

from dataclasses import replace
from itertools import repeat

import pytest
import torch
from support.tiny_run import write_tiny_file

from fastclr.config import Config
from fastclr.demo import fit
from fastclr.demo.fit import (
    MIN_SECONDS,
    MIN_STEPS,
    RESERVE,
    WARM_UP_STEPS,
    fit_epochs,
    mean_seconds,
    step_seconds,
)
from fastclr.recipes import load_recipe
from fastclr.train.build import resolve
from pipelines import BetonReader


@pytest.mark.parametrize("step_s", [0.3, 1.7, 25.0])
def test_the_first_steps_do_not_count(step_s):
    """The first steps compile: they take a minute each."""
    now, steps = 0.0, 0

    def take(_: None) -> None:
        nonlocal now, steps
        steps += 1
        now += 60 if steps <= WARM_UP_STEPS else step_s

    assert mean_seconds(take, repeat(None), clock=lambda: now) == pytest.approx(step_s)
    timed = steps - WARM_UP_STEPS
    assert timed >= MIN_STEPS and timed * step_s >= MIN_SECONDS
    assert timed == MIN_STEPS or (timed - 1) * step_s < MIN_SECONDS


def test_no_batches_are_an_error_and_not_a_speed():
    with pytest.raises(ValueError, match="too few batches"):
        mean_seconds(lambda _: None, [None])


RECIPE = replace(Config(), train=replace(Config().train, epochs=18, batch_size=100))


@pytest.mark.parametrize(
    ("step_s", "seconds", "epochs"),
    [
        (0.01, 90, 18),  # a fast machine: no more than the recipe's
        (0.25, 90, 8),  # 40 steps of 0.25 s are 10 s; 81 s hold 8 of them
        (1.0, 90, 2),
        (100.0, 90, 1),  # one epoch is longer than the time
    ],
)
def test_as_many_epochs_as_fit(step_s, seconds, epochs):
    fitted = fit_epochs(RECIPE, 4000, step_s, seconds)
    assert fitted.train.epochs == epochs
    assert fitted.optim.warmup_epochs / epochs == pytest.approx(RECIPE.optim.warmup_epochs / 18)
    assert epochs in (1, 18) or 40 * step_s * epochs <= seconds * (1 - RESERVE) < 40 * step_s * (epochs + 1)


@pytest.mark.slow
def test_a_real_step_is_timed(tmp_path, monkeypatch):
    monkeypatch.setattr(fit, "MIN_SECONDS", 0.0)
    recipe = load_recipe("demo")
    recipe = replace(recipe, train=replace(recipe.train, batch_size=4))
    with BetonReader(write_tiny_file(tmp_path / "x.beton", 12)) as reader:
        device = torch.device("cpu")
        threads = torch.get_num_threads()
        assert 0 < step_seconds(resolve(recipe, reader, device), reader, device) < 60
        assert torch.get_num_threads() == threads
