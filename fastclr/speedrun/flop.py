"""The floating-point operations of a recipe, counted on tensors without memory.

Convolutions and matrix products of encoder, head and loss count, forward and backward, a multiplication and an addition
as two.  Elementwise work, batch norm, the optimizer and the augmentation do not count.
"""

from dataclasses import dataclass

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from fastclr.config import Config
from fastclr.loss.nt_xent.reference import nt_xent_reference
from fastclr.optim import num_steps
from fastclr.speedrun.stages import stages
from fastclr.train.build import make_model


@dataclass(frozen=True)
class StageFlop:
    """Operations of a step in a stage."""

    size: int
    """Pixels of a view."""
    fraction: float
    """Fraction of the steps, 0 to 1."""
    flop: int
    """Operations of a step."""


def step_flop(config: Config, size: int) -> int:
    """Return the operations of a step at a size of the views; the config must be complete.

    The similarities of NT-Xent stand for those of every loss: each of them compares all views of a batch.
    """
    num_views = sum(spec.num_views for spec in config.view_specs)
    with torch.device("meta"), FlopCounterMode(display=False) as encoder:
        # four views are counted and multiplied: the batch would change nothing but the run time
        make_model(config.model, size).train()(torch.empty(4, 3, size, size))[1].sum().backward()
    # fake tensors have no memory either, and a device that autocast knows
    with FakeTensorMode(), FlopCounterMode(display=False) as loss:
        z = torch.empty(num_views * config.train.batch_size, config.model.proj_dim, requires_grad=True)
        nt_xent_reference(z, config.loss.temperature).backward()
    return encoder.get_total_flops() // 4 * num_views * config.train.batch_size + loss.get_total_flops()


def stage_flop(config: Config, num_images: int) -> list[StageFlop]:
    """Return the operations of a step in each stage of a run."""
    return [
        StageFlop(stage.size, stage.fraction, step_flop(config, stage.size))
        for stage in stages(config, num_images)
    ]


def mean_step_pflop(config: Config, num_images: int) -> float:
    """Return the mean of a step's operations over the run, in PFLOP (10¹⁵)."""
    return sum(stage.fraction * stage.flop for stage in stage_flop(config, num_images)) / 1e15


def run_pflop(config: Config, num_images: int) -> float:
    """Return the operations of a whole run on a number of images, in PFLOP."""
    return mean_step_pflop(config, num_images) * num_steps(
        num_images, config.train.epochs, config.train.batch_size
    )
