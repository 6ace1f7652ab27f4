"""The goals on one H100, and whether measurements reach them: the table of GPU figures in README.md.

`targets_table(folder)` reads the JSON files of `make gpu-check`; missing ones read "not measured".
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.core.report import from_json
from benchmarks.kernels.timing import KernelRow

NOT_MEASURED, MET, MISSED = "not measured", "met", "missed"


@dataclass(frozen=True)
class Target:
    """A goal for a figure in a row of a benchmark's report."""

    benchmark: str
    what: str
    key: str
    """The field `target` of the row that is judged."""
    figure: str
    """Field of the row that is judged."""
    limit: float
    at_least: bool = False
    """Whether the figure must be at least the limit, instead of at most."""

    def text(self, value: float) -> str:
        if self.figure.endswith("_per_s"):
            return f"{value:,.0f}/s"
        if self.figure.endswith("_share"):
            return f"{value:.1%}"
        return time_text(value)


@dataclass(frozen=True)
class Judgement:
    """Whether a target is reached."""

    what: str
    goal: str
    state: str = NOT_MEASURED
    """`met`, `missed` or `not measured`."""
    measured: str | None = None
    """The figure with its unit."""
    value: float | None = None
    floor_share: float | None = None
    device: str | None = None


LOSS = {8192: 110e-6, 16384: 410e-6, 65536: 6.6e-3}
"""Rows: seconds of NT-Xent forward and backward, width 128."""
STEP = "resnet50-224"

TARGETS = (
    *(
        Target("loss", f"NT-Xent, {rows} rows of 128, forward + backward", f"loss-{rows}", "median_s", limit)
        for rows, limit in LOSS.items()
    ),
    Target("optimizer", "LARS step, ResNet-50", "lars-resnet50", "median_s", 0.30e-3),
    Target("augment", "augmentation at 224 px, views", "augment-224", "views_per_s", 1.1e6, at_least=True),
    Target("step", "ResNet-50 step at 224 px, source images", STEP, "images_per_s", 2000, at_least=True),
    Target("step", "ResNet-50 step at 224 px, waiting for data", STEP, "data_wait_share", 0.01),
)


def time_text(seconds: float) -> str:
    """Return a time with three digits and a unit.

    >>> time_text(0.000239), time_text(0.0066)
    ('239 µs', '6.60 ms')
    """
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= scale or unit == "µs":
            value = seconds / scale
            return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f} {unit}"
    raise AssertionError(seconds)


def judge(benchmark: str, rows: Sequence[KernelRow]) -> list[Judgement]:
    """Judge the benchmark's targets by its rows; only those of a CUDA device count."""
    return [_judge(target, rows) for target in TARGETS if target.benchmark == benchmark]


def _judge(target: Target, rows: Sequence[KernelRow]) -> Judgement:
    goal = ("≥ " if target.at_least else "≤ ") + target.text(target.limit)
    row = next((row for row in rows if row.target == target.key), None)
    value = getattr(row, target.figure) if row is not None and row.device != "cpu" else None
    if row is None or value is None:
        return Judgement(target.what, goal)
    reached = value >= target.limit if target.at_least else value <= target.limit
    state = MET if reached else MISSED
    return Judgement(target.what, goal, state, target.text(value), value, row.floor_share, row.device)


def targets_table(folder: Path) -> str:
    """Return Markdown: a row per target, from the reports in a folder."""
    lines = ["| on one GPU | goal | measured | share of the floor | |", "|---|---:|---:|---:|---|"]
    devices = set()
    for benchmark in dict.fromkeys(target.benchmark for target in TARGETS):
        for found in judge(benchmark, load_rows(folder / f"{benchmark}.json")):
            share = "" if found.floor_share is None else f"{found.floor_share:.0%}"
            state = "" if found.state == NOT_MEASURED else found.state
            lines.append(
                f"| {found.what} | {found.goal} | {found.measured or NOT_MEASURED} | {share} | {state} |"
            )
            devices |= {found.device} - {None}
    return "\n".join([*lines, *(f"\nMeasured on {device}." for device in sorted(filter(None, devices)))])


def load_rows(path: Path) -> list[KernelRow]:
    """Return the rows of a report; none if there is no such file.

    Raises:
        ValueError: the file is not such a report.
    """
    if not path.exists():
        return []
    try:
        groups = json.loads(path.read_text(encoding="utf-8"))["groups"]
        return [
            from_json(KernelRow, row, f"row {row.get('name')}") for group in groups for row in group["rows"]
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not a report of `fastclr bench`: {error}") from error
