"""Where the numbers of a run go: a sink is any callable that takes a record, a dict with `step` and `epoch`.

`train(…, sinks=[…])` takes more of them; docs/training.md shows one for Weights & Biases.
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
"""Where stdout is no terminal, seconds between two printed lines."""


class MetricsFile:
    """Appends records to the run's metrics.jsonl.

    Args:
        folder: the run folder, which exists.
        step: steps done before; later records of an earlier life of the run are dropped.

    Raises:
        OSError: here, in a call or at the end of the block: the file can't be written; its name is in the error.
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
        # on a full disk closing fails, too, and must not hide what failed first
        with nullcontext() if kind is None else suppress(OSError), _named(self._path):
            self._file.close()


class EventsFile:
    """Writes records as TensorBoard's events, each at once: its own writer has a thread, whose errors get lost.

    Args and errors as `MetricsFile`.
    """

    def __init__(self, folder: Path, step: int) -> None:
        now = time.time()
        self._path = folder / f"events.out.tfevents.{now:.0f}.{socket.gethostname()}.{os.getpid()}.{step}"
        with _named(self._path):
            self._file = open(self._path, "ab")  # noqa: SIM115 closed at the end of the block
            self._writer = RecordWriter(self._file)
            self._write(Event(wall_time=now, file_version="brain.Event:2"))
            if step:
                # TensorBoard then drops what earlier files have from this step on
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


class LiveLine:
    """Shows the last record on stdout: a bar on a terminal, elsewhere a line now and then.

    Nothing that happens to stdout is an error.

    Args:
        step: steps done before.
        total_steps: steps of the whole run.
        clock: gives seconds.
    """

    def __init__(self, step: int, total_steps: int, clock: Callable[[], float] = time.perf_counter) -> None:
        self._first_step, self._total_steps, self._clock = step, total_steps, clock
        self._since, self._printed = clock(), -PRINT_EVERY_S
        self._val_knn: float | None = None
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

    def __call__(self, record: dict[str, Any]) -> None:
        self._val_knn = record.get("val_knn", self._val_knn)
        line = self._line(record)
        if self._bar is not None:
            self._bar.update(self._task, completed=record["step"], description=line)
            return
        now = self._clock()
        if now - self._printed >= PRINT_EVERY_S or record["step"] == self._total_steps or "val_knn" in record:
            self._printed = now
            say(line)

    def _line(self, record: dict[str, Any]) -> str:
        done = record["step"] - self._first_step
        left_s = (self._clock() - self._since) / max(done, 1) * (self._total_steps - record["step"])
        knn = "" if self._val_knn is None else f"val kNN {self._val_knn:.1%}  "
        return (
            f"step {record['step']}/{self._total_steps}  loss {record['loss']:.3f}  "
            f"accuracy {record['accuracy']:.1%}  {knn}lr {record['lr']:.3g}  "
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
    # in place: nothing that is kept can be lost, and the run's lock is on this file
    os.truncate(path, kept)
