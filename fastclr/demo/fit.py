"""Finds the number of epochs that fit into the demo's time on this machine."""

import dataclasses
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from typing import Any

import torch

from fastclr.config import Config
from fastclr.train.build import make_loader, make_model, make_optimizer, peak_lr
from fastclr.train.distributed import Ranks
from fastclr.train.loop import endless
from fastclr.train.pretrain import make_step
from pipelines import BetonReader
from pipelines.contracts import Batch
from pipelines.system.threads import torch_threads

WARM_UP_STEPS = 3
"""Number of first steps that are not timed: they compile kernels and allocate memory."""
MIN_STEPS, MIN_SECONDS = 4, 4.0
"""Minimum number of timed steps, and their minimum duration together."""
RESERVE = 0.1
"""Fraction of the time that is reserved for checkpoints, log lines, and a machine that slows down."""


def step_seconds(config: Config, reader: BetonReader, device: torch.device) -> float:
    """Train for a few seconds, drop the weights, and return the seconds of a step.

    Args:
        config: resolved.
    """
    # at the size of [views], the largest of a schedule: the run may then be shorter than the time, but not longer
    config = dataclasses.replace(config, schedule=())
    assert config.train.threads is not None
    lr = peak_lr(config)
    with torch_threads(config.train.threads), make_loader(config, reader, Ranks(), device) as loader:
        model = make_model(config.model, config.view_size).to(device).to(memory_format=torch.channels_last)
        step = make_step(config, model, make_optimizer(config.optim, model, lr), Ranks(), device)

        def take(batch: Batch) -> None:
            step(batch.views, lr / 1000)[0].item()

        with closing(endless(loader)) as batches:
            return mean_seconds(take, batches)


def mean_seconds(
    take: Callable[[Any], None], batches: Iterable[Any], clock: Callable[[], float] = time.perf_counter
) -> float:
    """Return the mean time of a step, including the wait for its batch.

    Args:
        take: takes a step on a batch and waits until it is done.
        batches: endless.
        clock: returns seconds.
    """
    start, count = 0.0, 0
    for number, batch in enumerate(batches, 1):
        take(batch)
        now, count = clock(), number - WARM_UP_STEPS
        if count == 0:
            start = now
        elif count >= MIN_STEPS and now - start >= MIN_SECONDS:
            return (now - start) / count
    raise ValueError("there were too few batches to time a step")


def fit_epochs(config: Config, num_images: int, seconds_per_step: float, seconds: float) -> Config:
    """Return the config with as many epochs as fit into the time: at least one, and at most as many as it has.

    The warm-up keeps its fraction of the epochs.

    >>> config = Config()  # 100 epochs of which 10 warm up, in batches of 4096
    >>> fitted = fit_epochs(config, num_images=40_960, seconds_per_step=1.0, seconds=200.0)
    >>> fitted.train.epochs, fitted.optim.warmup_epochs  # 10 steps an epoch, and a tenth of the time in reserve
    (18, 1.8)
    """
    epoch_s = seconds_per_step * num_images / config.train.batch_size
    epochs = min(config.train.epochs, max(1, int(seconds * (1 - RESERVE) / epoch_s)))
    return with_epochs(config, epochs)


def with_epochs(config: Config, epochs: int) -> Config:
    """Return the config with another number of epochs; the warm-up keeps its fraction of them."""
    warmup = config.optim.warmup_epochs * epochs / config.train.epochs
    return dataclasses.replace(
        config,
        optim=dataclasses.replace(config.optim, warmup_epochs=warmup),
        train=dataclasses.replace(config.train, epochs=epochs),
    )
