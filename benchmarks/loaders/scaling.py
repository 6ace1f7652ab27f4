"""Thread scaling: the native engine and the decode limit from one thread to all, in one interleaved run."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from benchmarks.core.harness import Case, measure
from benchmarks.loaders.ours import OurLoader
from benchmarks.loaders.peers.decode_limit import DecodeLimit

LIMIT, CROPS, FULL = "decode limit", "native, two crops", "native, full augmentation"


def thread_counts(most: int) -> list[int]:
    """Powers of two up to the number of threads, and that number.

    >>> thread_counts(6)
    [1, 2, 4, 6]
    """
    return [*(2**k for k in range(most.bit_length()) if 2**k < most), most]


def measure_scaling(
    file: Path, rounds: int, *, size: int, threads: int, batch_size: int
) -> Iterator[dict[str, Any]]:
    """Yields `rows` (line name → one result per thread count) and `relative_scaling` after every round.

    The relative scaling of a line is its rate on all threads over its rate on one, divided by the same of the
    decode limit: 1 means that it loses nothing which the decoder alone would not lose too.
    """
    counts = thread_counts(threads)
    cases: list[Case] = []
    for count in counts:
        cases += [
            DecodeLimit(LIMIT, file, batch_size, count),
            OurLoader(CROPS, file, "native", size, False, batch_size, count),
            OurLoader(FULL, file, "native", size, True, batch_size, count),
        ]
    for results in measure(cases, rounds):
        rows: dict[str, list[dict[str, Any]]] = {LIMIT: [], CROPS: [], FULL: []}
        for number, result in enumerate(results):
            rows[result.name].append({"threads": counts[number // 3], **result.as_json()})
        yield {"rows": rows, "relative_scaling": _relative_scaling(rows)}


def _relative_scaling(rows: dict[str, list[dict[str, Any]]]) -> dict[str, float]:
    growth = {name: row[-1]["median"] / row[0]["median"] for name, row in rows.items() if row[0]["median"]}
    return {
        name: growth[name] / growth[LIMIT] for name in (CROPS, FULL) if name in growth and LIMIT in growth
    }


def scaling_table(report: dict[str, Any]) -> Table:
    """Images per second by thread count, and what is lost relative to the decode limit."""
    settings, rows = report["settings"], report["rows"]
    table = Table(
        title=f"{report['file']['name']}: source images/s by threads, views of {settings['size']} px",
        caption=f"medians of {rows[LIMIT][0]['rounds']} interleaved rounds",
        box=SIMPLE_HEAD,
        pad_edge=False,
    )
    table.add_column("", no_wrap=True)
    for row in rows[LIMIT]:
        table.add_column(str(row["threads"]), justify="right")
    table.add_column("scaling, of the limit's", justify="right")
    for name, found in rows.items():
        relative = report["relative_scaling"].get(name)
        table.add_row(
            name,
            *("failed" if row["error"] else f"{row['median']:,.0f}" for row in found),
            f"{relative:.0%}" if relative else "",
        )
    return table
