"""Reports of the in-process benchmarks: groups of rows, as typed data and as tables on the screen.

Every row names the device that it was measured on; a row that could not be measured has the reason instead of a number.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from benchmarks.core.machine import Machine, describe_machine
from benchmarks.core.report import Settings, save, to_json
from benchmarks.kernels.roofline import H100
from benchmarks.kernels.targets import NOT_MEASURED, Judgement, judge, time_text
from benchmarks.kernels.timing import KernelRow

Column = tuple[str, str, str]
"""Heading, field of the row, and format: "bytes" (in MiB), "count", "share" or "error"."""


@dataclass(frozen=True)
class KernelGroup:
    """Variants of one computation, and its size."""

    title: str
    rows: list[KernelRow]
    num_rows: int | None = None
    """Rows of z, both views."""
    num_params: int | None = None
    size: int | None = None
    """Height and width of a view, pixels."""
    batch_size: int | None = None
    """Source images."""
    shape: Settings | None = None
    """Model and batch of a step; see `step_parts.Shape`."""
    shares: dict[str, float | None] | None = None
    """Parts of a step's time."""


@dataclass(frozen=True)
class KernelReport:
    """Result of an in-process benchmark."""

    benchmark: str
    machine: Machine
    settings: Settings
    groups: list[KernelGroup] = field(default_factory=list)
    targets: list[Judgement] = field(default_factory=list)


def new_report(benchmark: str, settings: Settings) -> KernelReport:
    """Return a report without groups, whose targets are not measured yet."""
    return KernelReport(benchmark, describe_machine(), to_json(settings), targets=judge(benchmark, []))


def with_group(report: KernelReport, out: Path | None, group: KernelGroup) -> KernelReport:
    """Return the report with one more group and its targets judged; write it, so that an interrupted run keeps it."""
    groups = [*report.groups, group]
    rows = [row for each in groups for row in each.rows]
    report = replace(report, groups=groups, targets=judge(report.benchmark, rows))
    if out is not None:
        save(out, report)
    return report


def with_floor(row: KernelRow, floor_s: float, target: str | None = None) -> KernelRow:
    """Return the row with the share of the floor, that is floor over time, if it was measured on a GPU.

    Args:
        floor_s: the shortest time that an H100 needs.
        target: key of the target that is judged by this row.
    """
    if row.device == "cpu":
        return replace(row, target=target)
    share = floor_s / row.median_s if row.median_s else None
    return replace(row, target=target, floor_s=floor_s, floor_share=share)


def print_group(console: Console, group: KernelGroup, columns: Sequence[Column]) -> None:
    """Print a table of one group with the device, and beneath it why rows have no number."""
    devices = ", ".join(dict.fromkeys(row.device for row in group.rows))
    table = Table(
        title=f"{group.title}; on {devices}",
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
        title_justify="left",
    )
    table.add_column("", no_wrap=True)
    for heading in ("time", "±", *(column[0] for column in columns)):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in group.rows:
        if row.median_s is None:
            table.add_row(row.name, NOT_MEASURED)
            continue
        spread = (max(row.turns_s) - min(row.turns_s)) / 2 / row.median_s
        cells = [_text(getattr(row, name), kind) for _, name, kind in columns]
        table.add_row(row.name, time_text(row.median_s), f"{spread:.0%}", *cells)
    console.print(table)
    for row in group.rows:
        remarks = [row.note, f"{NOT_MEASURED}: {row.error}" if row.error else ""]
        if any(remarks):
            console.print(
                f"  {row.name}: {'; '.join(filter(None, remarks))}",
                style="dim",
                highlight=False,
                markup=False,  # 'fastclr[bench]' is not markup
            )


def print_targets(console: Console, report: KernelReport) -> None:
    """Print whether the goals are reached, and on which GPU."""
    for target in report.targets:
        found = "" if target.measured is None else f" {target.measured} on {target.device}:"
        console.print(f"goal on an {H100.name}: {target.what} {target.goal}:{found} {target.state}")


def _text(value: float | None, kind: str) -> str:
    if value is None:
        return "–"
    if kind == "bytes":
        return f"{value / 2**20:,.1f}"
    if kind == "count":
        return f"{value:,.0f}"
    if kind == "share":
        return f"{value:.0%}"
    return f"{value:.1e}"
