"""The goals on one H100, and whether a measurement reaches them: the table of the GPU figures in README.md.

`targets_table(folder)` reads the JSON files of `make gpu-check`; what is not there reads "not measured".
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.core.report import load

NOT_MEASURED, MET, MISSED = "not measured", "met", "missed"


@dataclass(frozen=True)
class Target:
    """A figure to reach, in a row of a benchmark's report."""

    benchmark: str
    what: str
    key: str
    """Of the row that is judged: rows carry it as `target`."""
    figure: str
    """Which figure of the row."""
    limit: float
    at_least: bool = False
    """Whether the figure must be the limit or more, rather than the limit or less."""

    def text(self, value: float) -> str:
        if self.figure.endswith("_per_s"):
            return f"{value:,.0f}/s"
        if self.figure.endswith("_share"):
            return f"{value:.1%}"
        return time_text(value)


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
    """Three digits and a unit.

    >>> time_text(0.000239), time_text(0.0066)
    ('239 µs', '6.60 ms')
    """
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= scale or unit == "µs":
            value = seconds / scale
            return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f} {unit}"
    raise AssertionError(seconds)


def judge(benchmark: str, report: dict[str, Any] | None) -> list[dict[str, Any]]:
    """What a report says of the benchmark's targets; only rows of a CUDA device count."""
    found = []
    for target in TARGETS:
        if target.benchmark != benchmark:
            continue
        row = next((r for r in _rows(report) if r.get("target") == target.key), None)
        value = row.get(target.figure) if row is not None and row["device"] != "cpu" else None
        if value is None:
            state = NOT_MEASURED
        else:
            state = MET if (value >= target.limit if target.at_least else value <= target.limit) else MISSED
        found.append(
            {
                "what": target.what,
                "goal": ("≥ " if target.at_least else "≤ ") + target.text(target.limit),
                "measured": None if value is None else target.text(value),
                "value": value,
                "floor_share": None if value is None or row is None else row.get("floor_share"),
                "state": state,
                "device": None if value is None or row is None else row["device"],
            }
        )
    return found


def targets_table(folder: Path) -> str:
    """Markdown: a row per target, from the reports in a folder."""
    lines = ["| on one GPU | goal | measured | share of the floor | |", "|---|---:|---:|---:|---|"]
    devices = set()
    for benchmark in dict.fromkeys(target.benchmark for target in TARGETS):
        path = folder / f"{benchmark}.json"
        for row in judge(benchmark, load(path) if path.exists() else None):
            share = "" if row["floor_share"] is None else f"{row['floor_share']:.0%}"
            state = "" if row["state"] == NOT_MEASURED else row["state"]
            lines.append(
                f"| {row['what']} | {row['goal']} | {row['measured'] or NOT_MEASURED} | {share} | {state} |"
            )
            devices |= {row["device"]} - {None}
    return "\n".join([*lines, *(f"\nMeasured on {device}." for device in sorted(devices))])


def _rows(report: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    for group in (report or {}).get("groups", []):
        yield from group["rows"]
