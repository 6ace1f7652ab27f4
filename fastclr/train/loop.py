"""The training loop, shared by all tasks: learning rate → step → log → checkpoint.

A task (pretrain.py) builds a `Run` and passes it to the loop.  The loop handles ranks, signals, sinks and checkpoints.
The task defines what a step computes and logs, how the model is evaluated, and what is exported with a checkpoint.
"""

import importlib
import time
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from signal import Signals
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from fastclr.config import Config
from fastclr.train.checkpoint import restore, run_state, save_checkpoint
from fastclr.train.distributed import Ranks, all_reduce_max, run_on_main_and_broadcast
from fastclr.train.meter import Meter, NotFinite
from fastclr.train.run import CHECKPOINT, RunLock, new_run, write_config
from fastclr.train.sinks import EventsFile, LiveLine, MetricsFile, Sink
from fastclr.train.stop import StopRequest
from pipelines import ViewLoader
from pipelines.contracts import Batch

Item = TypeVar("Item")


class Task(Protocol):
    """Computation of a run.  It is called on every rank.  Each checkpoint contains its model and its optimizer."""

    @property
    def model(self) -> nn.Module: ...
    @property
    def optimizer(self) -> torch.optim.Optimizer: ...

    def take_step(self, batch: Batch, lr: float) -> tuple[Tensor, Any]:
        """Take a step at learning rate `lr`; return its loss (0-dim) and the output that `metrics` takes."""

    def metrics(self, output: Any) -> dict[str, float]:
        """Return the task's own metrics for a log record; they are the same on every rank."""

    def evaluation_is_due(self, done: int) -> bool:
        """Return whether the model is to be evaluated after `done` steps."""

    def evaluate(self) -> dict[str, float]:
        """Evaluate the model and return its metrics; they are the same on every rank."""

    def export(self, folder: Path, done: int) -> None:
        """Write the files that other programs use, after `done` steps; called only on rank 0."""


@dataclass(frozen=True)
class Outcome:
    """Result of a call of `train`."""

    step: int
    """Number of steps done since the beginning of the run."""
    total_steps: int
    """Number of steps of the whole run."""
    stopped_by: Signals | None
    """Signal that stopped the call early; None if the run is complete.  The same call continues the run."""
    images_per_s: float
    """Source images per second in this call; the time includes checkpoints and log lines, but not evaluations."""
    data_wait: float
    """Fraction of this call's time that the loop spent waiting for data."""
    first_step: int = 0
    """Number of steps done before this call; equal to `total_steps` if the run was complete."""


@dataclass(frozen=True)
class Run:
    """A run that is ready for its next step."""

    task: Task
    config: Config
    """Resolved configuration."""
    ranks: Ranks
    folder: Path
    loader: ViewLoader
    identity: Mapping[str, Any]
    """Settings and data; a run continues from a checkpoint only if they are equal to those in it."""
    learning_rate: Callable[[int], float]
    """Function that maps a step, counted from 0, to its learning rate."""
    total_steps: int

    def start(self, saved: Mapping[str, Any] | None, lock: RunLock) -> int:
        """Restore the state of a checkpoint or create the run folder; return the number of steps done."""
        if saved is not None:
            return restore(saved, self.task.model, self.task.optimizer, self.loader)

        def begin() -> None:
            with new_run(self.folder, lock):
                write_config(self.folder, self.config, self.loader.reader.path)
                self.save(0)

        run_on_main_and_broadcast(self.ranks, begin)
        return 0

    def save(self, done: int) -> None:
        """Write the checkpoint and the export of the task on rank 0.

        Raises:
            NotFinite: a weight is not finite; nothing is written.
        """
        _check_finite(self.task.model, done)
        if self.ranks.is_main:
            self.task.export(self.folder, done)
            state = run_state(done, self.identity, self.task.model, self.task.optimizer, self.loader)
            save_checkpoint(self.folder / CHECKPOINT, state)


def run_steps(run: Run, first_step: int, sinks: Sequence[Sink] = ()) -> Outcome:
    """Take the remaining steps of a run, until the last one or until a signal asks to stop."""
    task, ranks, total, settings = run.task, run.ranks, run.total_steps, run.config.train
    meter, saved_at, signal, done = Meter(ranks), time.monotonic(), 0, first_step
    with ExitStack() as stack:
        stop = stack.enter_context(StopRequest())
        record_to, show_to = _open_sinks(run, first_step, sinks, stack)
        batches = stack.enter_context(closing(meter.timed(endless(run.loader))))
        for step, batch in zip(range(first_step, total), batches, strict=False):
            lr = run.learning_rate(step)
            loss, output = task.take_step(batch, lr)
            done = step + 1
            meter.add(loss, len(batch))
            overdue = time.monotonic() - saved_at > 60 * settings.checkpoint_minutes
            signal, saving = all_reduce_max(ranks, stop.signal or 0, overdue)
            ending = bool(signal) or done == total
            evaluating = not signal and task.evaluation_is_due(done)
            record: dict[str, Any] = {}
            if ending or saving or evaluating or done % settings.log_every == 0:
                record = {"step": done, "epoch": batch.epoch, "lr": lr}
                record |= task.metrics(output) | meter.flush(done)
                if evaluating:
                    with meter.paused():
                        record |= task.evaluate()
                for sink in record_to:
                    sink(record)
            if ending or saving:
                run.save(done)
                saved_at = time.monotonic()
            # these sinks follow the checkpoint, so that an error in one of them does not prevent it
            if record:
                for sink in show_to:
                    sink(dict(record))
            if ending:
                break
    # barrier: if another rank exits first, torchrun kills rank 0 while it is still writing the checkpoint
    all_reduce_max(ranks, 0)
    stopped_by = Signals(signal) if done < total else None
    return Outcome(done, total, stopped_by, **meter.totals(), first_step=first_step)


def _open_sinks(
    run: Run, step: int, sinks: Sequence[Sink], stack: ExitStack
) -> tuple[list[Sink], list[Sink]]:
    """Return the sinks that get a record before the checkpoint and those that get it after; only rank 0 has sinks."""
    if not run.ranks.is_main:
        return [], []
    metrics = stack.enter_context(MetricsFile(run.folder, step))
    events = stack.enter_context(EventsFile(run.folder, step))
    line = stack.enter_context(LiveLine(step, run.total_steps))
    return [metrics], [events, line, *sinks]


def endless(batches: Iterable[Item]) -> Generator[Item]:
    """Yield the batches of endless epochs, one epoch after the other."""
    while True:
        yield from batches


def _check_finite(model: nn.Module, step: int) -> None:
    """Raise NotFinite unless all weights are finite: a finite loss says nothing about the weights after its step."""
    state = [*model.parameters(), *model.buffers()]
    if not all(bool(tensor.isfinite().all()) for tensor in state):
        raise NotFinite(step, "the weights", "not finite")


@contextmanager
def failures_explained(folder: Path, device: torch.device, images: int) -> Iterator[None]:
    """Convert the errors of diverged training and exhausted device memory to a ValueError that says what to do.

    Args:
        folder: the run folder.
        device: device that computes the steps.
        images: number of images in a step, per rank.
    """
    try:
        yield
    except NotFinite as error:
        raise ValueError(
            f"{error}; {folder / CHECKPOINT} keeps the last good state: try a lower optim.base_lr, a "
            f"longer warm-up, or train.precision float32, in a new --out"
        ) from error
    except torch.OutOfMemoryError as error:
        raise ValueError(
            f"{device} has too little memory for a step of {images} images; lower --train.batch-size, or set "
            "--train.micro-batch to a fraction of it"
        ) from error


def __getattr__(name: str) -> Any:
    # `train` was in this module in fastclr 0.1
    if name == "train":
        message = "fastclr.train.loop.train is now fastclr.train.pretrain.train"
        warnings.warn(message, DeprecationWarning, stacklevel=2)
        return importlib.import_module("fastclr.train.pretrain").train
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
