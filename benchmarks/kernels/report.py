"""Reports of the in-process benchmarks: groups of rows, as JSON and as tables on the screen.

A report is {"benchmark", "machine", "settings", "groups": [{"title", …, "rows": […]}], "targets": […]}.  Every row
carries the device it was measured on; a row that could not be measured carries the reason instead of a number.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from benchmarks.core.machine import describe
from benchmarks.core.report import save
from benchmarks.kernels.roofline import H100
from benchmarks.kernels.targets import NOT_MEASURED, judge, time_text
from benchmarks.kernels.timing import Timing

Column = tuple[str, str, str]
"""Heading, key in the row, and format: "bytes" (in MiB), "count", "share" or "error"."""


def new_report(benchmark: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    report = {"benchmark": benchmark, "machine": describe(), "settings": dict(settings), "groups": []}
    return {**report, "targets": judge(benchmark, report)}


def add_group(
    report: dict[str, Any], out: Path | None, title: str, rows: list[dict[str, Any]], **facts: Any
) -> None:
    """Append a group, judge the targets anew, and write the file: a run that is cut short keeps what it has."""
    report["groups"].append({"title": title, **facts, "rows": rows})
    report["targets"] = judge(report["benchmark"], report)
    if out is not None:
        save(out, report)


def row_of(timing: Timing, floor_s: float | None = None, target: str | None = None) -> dict[str, Any]:
    """A timing as a row: on a GPU with its share of the floor, that is floor over time.

    Args:
        timing: what was measured.
        floor_s: the least time that an H100 needs.
        target: key of the target that is judged by this row.
    """
    row = timing.as_json()
    on_gpu = timing.device != "cpu" and floor_s is not None
    row["floor_s"] = floor_s if on_gpu else None
    row["floor_share"] = floor_s / row["median_s"] if on_gpu and floor_s and row["median_s"] else None
    if target is not None:
        row["target"] = target
    return row


def print_group(console: Console, group: Mapping[str, Any], columns: Sequence[Column]) -> None:
    """A table of one group, on which device it was measured, and beneath it why rows have no number."""
    rows = group["rows"]
    devices = ", ".join(dict.fromkeys(row["device"] for row in rows))
    table = Table(
        title=f"{group['title']}; on {devices}",
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
        title_justify="left",
    )
    table.add_column("", no_wrap=True)
    for heading in ("time", "±", *(column[0] for column in columns)):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        if row["error"]:
            table.add_row(row["name"], NOT_MEASURED)
            continue
        spread = (row["high_s"] - row["low_s"]) / 2 / row["median_s"]
        cells = [_text(row.get(key), kind) for _, key, kind in columns]
        table.add_row(row["name"], time_text(row["median_s"]), f"{spread:.0%}", *cells)
    console.print(table)
    for row in rows:
        remarks = [row["note"], f"{NOT_MEASURED}: {row['error']}" if row["error"] else ""]
        if any(remarks):
            console.print(
                f"  {row['name']}: {'; '.join(filter(None, remarks))}",
                style="dim",
                highlight=False,
                markup=False,  # 'fastclr[bench]' is no markup
            )


def print_targets(console: Console, report: Mapping[str, Any]) -> None:
    """Whether the goals are reached, and on which GPU."""
    for target in report["targets"]:
        found = "" if target["measured"] is None else f" {target['measured']} on {target['device']}:"
        console.print(f"goal on an {H100.name}: {target['what']} {target['goal']}:{found} {target['state']}")


def _text(value: Any, kind: str) -> str:
    if value is None:
        return "–"
    if kind == "bytes":
        return f"{value / 2**20:,.1f}"
    if kind == "count":
        return f"{value:,.0f}"
    if kind == "share":
        return f"{value:.0%}"
    return f"{value:.1e}"
