"""Session: starts or continues the run of a task, and takes its steps; the same for pre-training and fine-tuning."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastclr.config import Config
from fastclr.optim import num_steps, num_warmup_steps, warmup_cosine
from fastclr.train.build import check_batch, encoder_meta, make_loader, peak_lr, view_sizes
from fastclr.train.distributed import Ranks, run_on_main_and_broadcast
from fastclr.train.encoder_file import encoder_title
from fastclr.train.loop import Outcome, Run, Task, failures_explained, run_steps
from fastclr.train.run import RunLock, is_same_run, saved_run
from fastclr.train.sinks import Sink
from pipelines import BetonReader
from pipelines.system.output import say
from pipelines.system.threads import torch_threads


@dataclass(frozen=True)
class Session:
    """A call that trains: the data, the folder and the machine of a run."""

    config: Config
    """Resolved."""
    reader: BetonReader
    folder: Path
    ranks: Ranks
    device: torch.device
    identity: dict[str, Any]
    """Settings and data; a run continues from a checkpoint only if they are equal to those in it."""
    indices: np.ndarray | None = None
    """int64, sorted: the samples to train on; None: all."""

    @property
    def num_images(self) -> int:
        return len(self.reader) if self.indices is None else len(self.indices)

    def run(
        self,
        build: Callable[[], Task],
        *,
        check: Callable[[], None] | None = None,
        fresh: bool = False,
        resume: bool = False,
        sinks: Sequence[Sink] = (),
    ) -> Outcome:
        """Take the steps that are left of the run in the folder, or of a new one.

        Args:
            build: makes the task with its initial weights.
            check: raises what rules the run out; called on rank 0, before the folder is touched.
            fresh, resume, sinks: see `fastclr.train.pretrain.train`, which also lists the errors.
        """
        config, ranks = self.config, self.ranks
        total = num_steps(self.num_images, config.train.epochs, config.train.batch_size)
        with ExitStack() as stack:
            lock = stack.enter_context(RunLock())

            def prepare() -> dict[str, Any] | None:
                check_batch(config.train, self.reader, ranks, self.num_images)
                if check is not None:
                    check()
                saved = saved_run(self.folder, lock, fresh=fresh, resume=resume)
                return saved if is_same_run(self.folder, saved, self.identity, self.reader) else None

            saved = run_on_main_and_broadcast(ranks, prepare)
            if saved is not None and saved["step"] == total:
                return Outcome(total, total, None, 0.0, 0.0, first_step=total)
            stack.enter_context(_machine_settings(config))
            images = config.train.batch_size // ranks.world_size
            stack.enter_context(failures_explained(self.folder, self.device, images))
            task = build()
            loader = stack.enter_context(make_loader(config, self.reader, ranks, self.device, self.indices))
            rate = learning_rate(config, self.num_images)
            run = Run(task, config, ranks, self.folder, loader, self.identity, rate, total)
            done = run.start(saved, lock)
            if ranks.is_main:
                say(self._opening(run, done))
            return run_steps(run, done, sinks)

    def _opening(self, run: Run, done: int) -> str:
        """Return a line about the run, printed first because the first step may take minutes."""
        config, data, train = self.config, self.config.data, self.config.train
        sizes = ", ".join(map(str, view_sizes(config, self.num_images)))
        return (
            f"{self.num_images:,} images, {train.epochs:,} epochs, {run.total_steps:,} steps of {train.batch_size:,}"
            + (f", from step {done:,} on" if done else "")
            + f"; {encoder_title(encoder_meta(config))} at {sizes} px in {train.precision} on {train.device}; "
            f"engine {data.engine}, {data.threads} loader thread{'' if data.threads == 1 else 's'}"
            + (f"; schedule: {'; '.join(map(str, config.schedule))}" if config.schedule else "")
            + (f"; evaluated at {config.eval_size} px" if config.eval_size != config.view_size else "")
        )


def learning_rate(config: Config, num_images: int) -> Callable[[int], float]:
    """Return the function that maps a step, counted from 0, to its learning rate."""
    batch_size = config.train.batch_size
    total = num_steps(num_images, config.train.epochs, batch_size)
    warmup = num_warmup_steps(num_images, config.optim.warmup_epochs, batch_size)
    return lambda step: warmup_cosine(step, total, warmup, peak_lr(config))


def evaluation_is_due(config: Config, num_images: int, done: int) -> bool:
    """Whether step `done` completes another `train.eval_epochs` epochs of `num_images` images, or the run."""
    train = config.train
    images, interval = train.batch_size, num_images * train.eval_epochs
    total = num_steps(num_images, train.epochs, train.batch_size)
    return done == total or done * images // interval > (done - 1) * images // interval


@contextmanager
def _machine_settings(config: Config) -> Iterator[None]:
    """Change torch's process-wide settings for the duration of a run."""
    benchmark = torch.backends.cudnn.benchmark
    assert config.train.threads is not None
    # shapes change rarely (by a schedule) or never: let cuDNN look for the fastest convolutions
    torch.backends.cudnn.benchmark = True
    try:
        with torch_threads(config.train.threads):
            yield
    finally:
        torch.backends.cudnn.benchmark = benchmark
