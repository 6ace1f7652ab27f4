"""RunLog: the numbers of a run, as `metrics.jsonl`, as TensorBoard events, and as a live line."""

import json
import os
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Column
from torch.utils.tensorboard import SummaryWriter

from fastclr.train.run_folder import METRICS

PLAIN_EVERY_S = 10.0
"""Where stdout is no terminal, seconds between two printed lines."""


class RunLog:
    """Writes each record to the run folder and shows it to the user.

    Args:
        folder: the run folder, which exists.
        step: steps done before; later records of an earlier life of the run are dropped.
        total_steps: steps of the whole run.
    """

    def __init__(self, folder: Path, step: int, total_steps: int) -> None:
        self._total_steps = total_steps
        self._first_step, self._since = step, time.perf_counter()
        self._printed = -PLAIN_EVERY_S
        path = folder / METRICS
        _keep_until(path, step)
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 closed in close()
        self._events = SummaryWriter(str(folder), purge_step=step + 1 if step else None)
        self._bar: Progress | None = None
        if sys.stdout.isatty():
            # a column of its own making: rich's would cut the line on a narrow terminal instead of folding it
            self._bar = Progress(BarColumn(20), TextColumn("{task.description}", table_column=Column()))
            self._task = self._bar.add_task("starting", total=total_steps, completed=step)
            self._bar.start()

    def write(self, record: dict[str, Any]) -> None:
        """Log a record: `step` and `epoch`, and the numbers to plot under their names."""
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        for name, value in record.items():
            if name not in ("step", "epoch"):
                self._events.add_scalar(name, value, record["step"])
        line = self._line(record)
        if self._bar is not None:
            self._bar.update(self._task, completed=record["step"], description=line)
            return
        now = time.perf_counter()
        if now - self._printed >= PLAIN_EVERY_S or record["step"] == self._total_steps:
            self._printed = now
            print(line, flush=True)

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
        self._events.close()
        self._file.close()

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The records of a run, in the order of their steps.

    Raises:
        FileNotFoundError: the folder holds no run.
    """
    return [json.loads(line) for line in (folder / METRICS).read_text("utf-8").splitlines()]


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
