"""The untimed warm-up leaves no trace: a warmed run and an unwarmed one end with equal weights."""

from dataclasses import replace

import pytest
import torch
from support.tiny_run import write_tiny_file, write_tiny_recipe

from fastclr.recipes import load_recipe
from fastclr.speedrun.warm_up import warm_up
from fastclr.train.checkpoint import load_checkpoint
from fastclr.train.pretrain import train


@pytest.fixture
def tiny(tmp_path):
    return load_recipe(str(write_tiny_recipe(tmp_path / "tiny.toml"))), write_tiny_file(tmp_path / "t.beton")


def tensors(state):
    """All tensors in nested dicts and lists, in order."""
    if isinstance(state, torch.Tensor):
        return [state]
    values = state.values() if isinstance(state, dict) else state if isinstance(state, list) else []
    return [tensor for value in values for tensor in tensors(value)]


@pytest.mark.parametrize("optimizer", ["lars", "sgd", "adamw"])
def test_warmed_and_unwarmed_runs_are_equal(tiny, tmp_path, optimizer):
    config, file = tiny
    config = replace(config, optim=replace(config.optim, name=optimizer, base_lr=0.05))
    tasks, sizes = [], []

    def warming(task):
        torch.rand(1)
        before = torch.get_rng_state()
        warm_up(task, [16, 24], steps=3)
        assert torch.equal(torch.get_rng_state(), before)
        tasks.append(task)
        sizes.append(len(task.optimizer.state))

    train(config, file, tmp_path / "plain")
    train(config, file, tmp_path / "warmed", warm_up=warming)
    assert sizes[0] > 0, "the warm-up took no step"
    plain, warmed = (load_checkpoint(tmp_path / name / "last.pt") for name in ("plain", "warmed"))
    for part in ("model", "optimizer"):
        pairs = list(zip(tensors(plain[part]), tensors(warmed[part]), strict=True))
        assert len(pairs) > 10
        assert all(torch.equal(a, b) for a, b in pairs)


def test_a_run_that_has_begun_is_not_warmed_up(tiny, tmp_path):
    config, file = tiny

    def twice(task):
        warm_up(task, [16], steps=1)
        warm_up(task, [16], steps=1)

    with pytest.raises(ValueError, match="taken no step"):
        train(config, file, tmp_path / "run", warm_up=twice)
