"""Sinks of a run's log: callables that take a record, a dict with `step`, `epoch` and the numbers of the step.

`train(…, sinks=[…])` takes further ones; docs/training.md shows one for Weights & Biases.
"""

import json
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, TextIO, cast

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Column
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from fastclr.train.run import METRICS
from pipelines.system.output import LenientOutput, say

Sink = Callable[[dict[str, Any]], None]

PRINT_EVERY_S = 10.0
"""Time between two printed lines if stdout is not a terminal."""


class MetricsFile:
    """Appends records to the run's metrics.jsonl.

    Args:
        folder: the run folder, which exists.
        step: steps done before; records of later steps, from before a resume, are dropped.

    Raises:
        OSError: the file can't be written (at construction, in a call or at the end of the block); the error names it.
    """

    def __init__(self, folder: Path, step: int) -> None:
        self._path = folder / METRICS
        _keep_until(self._path, step)
        self._file = open(self._path, "a", encoding="utf-8")  # noqa: SIM115 closed at the end of the block

    def __call__(self, record: dict[str, Any]) -> None:
        with _named(self._path):
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()

    def __enter__(self) -> "MetricsFile":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # on a full disk closing fails, too, and must not hide the first error
        with nullcontext() if kind is None else suppress(OSError), _named(self._path):
            self._file.close()


class EventsFile:
    """Writes records as TensorBoard events, each at once: errors in the thread of TensorBoard's own writer get lost.

    Arguments and errors are those of `MetricsFile`.
    """

    def __init__(self, folder: Path, step: int) -> None:
        now = time.time()
        self._path = folder / f"events.out.tfevents.{now:.0f}.{socket.gethostname()}.{os.getpid()}.{step}"
        with _named(self._path):
            self._file = open(self._path, "ab")  # noqa: SIM115 closed at the end of the block
            self._writer = RecordWriter(self._file)
            self._write(Event(wall_time=now, file_version="brain.Event:2"))
            if step:
                # makes TensorBoard drop the records of earlier files from this step on
                self._write(Event(step=step + 1, session_log=SessionLog(status=SessionLog.START)))

    def __call__(self, record: dict[str, Any]) -> None:
        values = [
            Summary.Value(tag=name, simple_value=value)
            for name, value in record.items()
            if name not in ("step", "epoch")
        ]
        with _named(self._path):
            self._write(Event(wall_time=time.time(), step=record["step"], summary=Summary(value=values)))

    def _write(self, event: Event) -> None:
        self._writer.write(event.SerializeToString())
        self._file.flush()

    def __enter__(self) -> "EventsFile":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with nullcontext() if kind is None else suppress(OSError), _named(self._path):
            self._file.close()


ACCURACIES = ("accuracy", "top1")
"""Keys of a record for the accuracy on the step's own images, by the task."""
EVALUATIONS = {"val_knn": "val kNN", "test_top1": "test top-1"}
"""Keys of a record for the accuracy on other images, and their titles."""


class LiveLine:
    """Shows the last record on stdout: as a bar on a terminal, elsewhere as a line now and then.

    Errors of stdout are ignored.

    Args:
        step: steps done before.
        total_steps: steps of the whole run.
        clock: gives seconds.
    """

    def __init__(self, step: int, total_steps: int, clock: Callable[[], float] = time.perf_counter) -> None:
        self._first_step, self._total_steps, self._clock = step, total_steps, clock
        self._since, self._printed = clock(), -PRINT_EVERY_S
        self._evaluations: dict[str, float] = {}
        self._bar: Progress | None = None
        if sys.stdout is not None and not sys.stdout.closed and sys.stdout.isatty():
            # a custom column folds the line on a narrow terminal; rich's own would cut it
            self._bar = Progress(
                BarColumn(20),
                TextColumn("{task.description}", table_column=Column()),
                console=Console(file=cast(TextIO, LenientOutput(sys.stdout))),
            )
            self._task = self._bar.add_task("starting", total=total_steps, completed=step)
            self._bar.start()

    def __call__(self, record: dict[str, Any]) -> None:
        evaluated = {title: record[key] for key, title in EVALUATIONS.items() if key in record}
        self._evaluations |= evaluated
        line = self._line(record)
        if self._bar is not None:
            self._bar.update(self._task, completed=record["step"], description=line)
            return
        now = self._clock()
        if now - self._printed >= PRINT_EVERY_S or record["step"] == self._total_steps or evaluated:
            self._printed = now
            say(line)

    def _line(self, record: dict[str, Any]) -> str:
        done = record["step"] - self._first_step
        left_s = (self._clock() - self._since) / max(done, 1) * (self._total_steps - record["step"])
        accuracy = "".join(f"accuracy {record[key]:.1%}  " for key in ACCURACIES if key in record)
        evaluations = "".join(f"{title} {value:.1%}  " for title, value in self._evaluations.items())
        return (
            f"step {record['step']}/{self._total_steps}  loss {record['loss']:.3f}  "
            f"{accuracy}{evaluations}lr {record['lr']:.3g}  "
            f"{record['images_per_s']:,.0f} images/s  data wait {record['data_wait']:.1%}  "
            f"{timedelta(seconds=round(left_s))} left"
        )

    def __enter__(self) -> "LiveLine":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Return the records of a run, in the order of their steps.

    Raises:
        FileNotFoundError: the folder holds no run.
    """
    return [json.loads(line) for line in (folder / METRICS).read_text("utf-8").splitlines()]


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Put the file's name into an OSError of the block."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def _keep_until(path: Path, step: int) -> None:
    """Drop the records after `step`, and a line that a crash truncated: the run will write them again."""
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
    # in place, so that kept records can't be lost, and because the run's lock is on this file
    os.truncate(path, kept)
