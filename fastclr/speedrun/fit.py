"""Fits the epochs of a recipe to a budget of CPU seconds, from the measured time of a few steps."""

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace

import torch

from fastclr.config import Config
from fastclr.demo.fit import with_epochs
from fastclr.optim import num_steps
from fastclr.speedrun.stages import Stage, stages
from fastclr.train.build import make_loader, make_model, make_optimizer, peak_lr
from fastclr.train.distributed import Ranks
from fastclr.train.loop import endless
from fastclr.train.pretrain import make_step
from pipelines import BetonReader
from pipelines.system.threads import torch_threads

UNTIMED_STEPS, MIN_STEPS = 3, 20
"""First steps that are not timed, and minimum number of those that are."""
TIMED_FRACTION = 0.01
"""Fraction of the budget that the timed steps take at least."""
RESERVE = 0.04
"""Fraction of the budget that is kept back for a machine that slows down; a seed above the budget is refused."""


@dataclass(frozen=True)
class StepTimes:
    """CPU seconds of a process."""

    startup_s: float
    """From its start to its first timed step, imports included."""
    step_s: list[float]
    """Of a step, in each stage."""


def time_steps(
    config: Config,
    reader: BetonReader,
    min_seconds: float,
    clock: Callable[[], float] = time.process_time,
) -> StepTimes:
    """Take some steps in each stage of a run, drop the weights, and return their mean CPU seconds.

    Args:
        config: complete.
        reader: the images.
        min_seconds: minimum of the timed steps of a stage together.
        clock: returns the CPU seconds of this process.
    """
    startup_s, step_s = 0.0, []
    for number, stage in enumerate(stages(config, len(reader))):
        mean_s, first = _time_stage(config, stage, reader, min_seconds, clock)
        startup_s = startup_s if number else first
        step_s.append(mean_s)
    return StepTimes(startup_s, step_s)


def _time_stage(
    config: Config, stage: Stage, reader: BetonReader, min_seconds: float, clock: Callable[[], float]
) -> tuple[float, float]:
    """Return the mean seconds of a step, and the clock before the first timed one."""
    threads = config.train.threads
    assert threads is not None
    views = tuple(replace(spec, size=stage.size) for spec in config.view_specs)
    config = replace(config, views=views, schedule=())
    lr = peak_lr(config)
    device = torch.device("cpu")
    with torch_threads(threads), make_loader(config, reader, Ranks(), device) as loader:
        model = make_model(config.model, config.view_size).to(memory_format=torch.channels_last)
        step = make_step(config, model, make_optimizer(config.optim, model, lr), Ranks(), device)
        first = 0.0
        with closing(endless(loader)) as batches:
            for number, batch in enumerate(batches, 1 - UNTIMED_STEPS):
                step(batch.views, lr / 1000)[0].item()
                if number == 0:
                    first = clock()
                elif number >= MIN_STEPS and clock() - first >= min_seconds:
                    return (clock() - first) / number, first
    raise AssertionError("an endless loader ended")


def fit_epochs(
    config: Config, num_images: int, times: StepTimes, budget_s: float, reserve: float = RESERVE
) -> Config:
    """Return the config with as many epochs as fit into the budget; the warm-up keeps its fraction of them.

    Args:
        config: with any number of epochs.
        num_images: images of an epoch.
        times: CPU seconds before the first step, and of a step in each stage.
        budget_s: CPU seconds for all of a seed; the conversion is subtracted already.
        reserve: fraction of the budget to keep back.

    Raises:
        ValueError: not even one epoch fits.
    """
    available_s = budget_s * (1 - reserve) - times.startup_s
    step_s, batch = _mean_step_s(config, num_images, times), config.train.batch_size
    epochs = int(available_s / step_s * batch / num_images)
    while epochs and num_steps(num_images, epochs, batch) * step_s > available_s:
        epochs -= 1
    if epochs < 1:
        raise ValueError(
            f"an epoch of {num_images:,} images takes {num_images / batch * step_s:.0f} CPU seconds, and the budget "
            f"has {max(available_s, 0):.0f}; take a smaller model or smaller views"
        )
    return with_epochs(config, epochs)


def predicted_s(config: Config, num_images: int, times: StepTimes) -> float:
    """Return the CPU seconds that a seed will take, without the conversion."""
    steps = num_steps(num_images, config.train.epochs, config.train.batch_size)
    return times.startup_s + steps * _mean_step_s(config, num_images, times)


def _mean_step_s(config: Config, num_images: int, times: StepTimes) -> float:
    return sum(stage.fraction * s for stage, s in zip(stages(config, num_images), times.step_s, strict=True))
