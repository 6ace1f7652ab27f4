"""RunLog: the numbers of a run, as `metrics.jsonl`, as TensorBoard events, and as a live line."""

import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, TextIO, cast

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Column
from torch.utils.tensorboard import SummaryWriter

from fastclr.train.run_folder import METRICS
from pipelines.system.output import LenientOutput, say

PLAIN_EVERY_S = 10.0
"""Where stdout is no terminal, seconds between two printed lines."""


class RunLog:
    """Writes records to the run folder and shows them to the user.

    Args:
        folder: the run folder, which exists.
        step: steps done before; later records of an earlier life of the run are dropped.
        total_steps: steps of the whole run.

    Raises:
        OSError: here, in `write` or in `close`: a file that can't be written, with its name.
    """

    def __init__(self, folder: Path, step: int, total_steps: int) -> None:
        self._total_steps = total_steps
        self._first_step, self._since = step, time.perf_counter()
        self._printed = -PLAIN_EVERY_S
        self._path, self._events_path = folder / METRICS, folder / "events.out.tfevents.*"
        _keep_until(self._path, step)
        self._file = open(self._path, "a", encoding="utf-8")  # noqa: SIM115 closed in close()
        with _named(self._events_path):
            self._events = SummaryWriter(str(folder), purge_step=step + 1 if step else None)
        self._excepthook, threading.excepthook = threading.excepthook, self._thread_failed
        self._bar: Progress | None = None
        if sys.stdout is not None and not sys.stdout.closed and sys.stdout.isatty():
            # a column of its own making: rich's would cut the line on a narrow terminal instead of folding it
            self._bar = Progress(
                BarColumn(20),
                TextColumn("{task.description}", table_column=Column()),
                console=Console(file=cast(TextIO, LenientOutput(sys.stdout))),
            )
            self._task = self._bar.add_task("starting", total=total_steps, completed=step)
            self._bar.start()

    def write(self, record: dict[str, Any]) -> None:
        """Log a record: `step` and `epoch`, and the numbers to plot under their names."""
        with _named(self._path):
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()
        with _named(self._events_path):
            for name, value in record.items():
                if name not in ("step", "epoch"):
                    self._events.add_scalar(name, value, record["step"])

    def show(self, record: dict[str, Any]) -> None:
        """Show a record on stdout; where nobody reads that, nothing happens."""
        line = self._line(record)
        if self._bar is not None:
            self._bar.update(self._task, completed=record["step"], description=line)
            return
        now = time.perf_counter()
        if now - self._printed >= PLAIN_EVERY_S or record["step"] == self._total_steps:
            self._printed = now
            say(line)

    def _line(self, record: dict[str, Any]) -> str:
        done = record["step"] - self._first_step
        left_s = (time.perf_counter() - self._since) / max(done, 1) * (self._total_steps - record["step"])
        return (
            f"step {record['step']}/{self._total_steps}  loss {record['loss']:.3f}  "
            f"accuracy {record['accuracy']:.1%}  lr {record['lr']:.3g}  {record['images_per_s']:,.0f} images/s  "
            f"data wait {record['data_wait']:.1%}  {timedelta(seconds=round(left_s))} left"
        )

    def close(self) -> None:
        """Release the files and the terminal's line."""
        if self._bar is not None:
            self._bar.stop()
        try:
            with _named(self._events_path):
                self._events.close()
        finally:
            threading.excepthook = self._excepthook
            with _named(self._path):
                self._file.close()

    def _thread_failed(self, failure: threading.ExceptHookArgs) -> None:
        # what the thread that writes the events fails of comes out of the next record; it would print it, too
        if not type(failure.thread).__module__.startswith("tensorboard."):
            self._excepthook(failure)

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # on a full disk closing fails, too, and must not hide what failed first
        with nullcontext() if kind is None else suppress(OSError):
            self.close()


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The records of a run, in the order of their steps.

    Raises:
        FileNotFoundError: the folder holds no run.
    """
    return [json.loads(line) for line in (folder / METRICS).read_text("utf-8").splitlines()]


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """What can't be written inside the block gets the file's name."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def _keep_until(path: Path, step: int) -> None:
    """Drop the records after `step`, and a line that a crash cut off: the run is about to write them again."""
    if not path.exists():
        return
    kept = 0
    for line in path.read_bytes().splitlines(keepends=True):
        try:
            if not line.endswith(b"\n") or json.loads(line)["step"] > step:
                break
        except (ValueError, KeyError, TypeError):
            break
        kept += len(line)
    os.truncate(path, kept)  # in place: nothing that is kept can be lost, and the run's lock is on this file
