"""Thread scaling: the native engine and the decode limit from one thread to all, in one interleaved run."""

from collections.abc import Iterator

from rich.box import SIMPLE_HEAD
from rich.table import Table

from benchmarks.core.harness import Case, measure_in_turn
from benchmarks.loaders.ours import OurLoader
from benchmarks.loaders.peers.decode_limit import DecodeLimit
from benchmarks.loaders.report import LoaderSettings, ScalingReport, ScalingRow
from pipelines.beton import Files

LIMIT, CROPS, FULL = "decode limit", "native, two crops", "native, full augmentation"


def thread_counts(num_threads: int) -> list[int]:
    """Return the powers of two up to the number of threads, and that number.

    >>> thread_counts(6)
    [1, 2, 4, 6]
    """
    return [*(2**k for k in range(num_threads.bit_length()) if 2**k < num_threads), num_threads]


def measure_scaling(
    file: Files,
    plain: Files,
    rounds: int,
    settings: LoaderSettings,
    fields: tuple[str | None, str | None] = (None, None),
) -> Iterator[dict[str, list[ScalingRow]]]:
    """Yield line name → one row for each number of threads, after every round.

    Args:
        file: what the native engine reads.
        plain: the same images without restart markers, for the decode limit.
        fields: names of the image and the label field of `file`.
    """
    counts = thread_counts(settings.threads)
    size, batch_size = settings.size, settings.batch_size
    cases: list[Case] = []
    for count in counts:
        cases += [
            DecodeLimit(LIMIT, plain, batch_size, count),
            OurLoader(CROPS, file, "native", size, False, batch_size, count, fields=fields),
            OurLoader(FULL, file, "native", size, True, batch_size, count, fields=fields),
        ]
    for results in measure_in_turn(cases, rounds):
        rows: dict[str, list[ScalingRow]] = {LIMIT: [], CROPS: [], FULL: []}
        for number, result in enumerate(results):
            rows[result.name].append(ScalingRow(threads=counts[number // 3], **vars(result)))
        yield rows


def relative_scaling(rows: dict[str, list[ScalingRow]]) -> dict[str, float]:
    """Return the growth of each line from one thread to all, relative to that of the decode limit.

    1 means that a line loses nothing which the decoder alone would not lose too.
    """
    growth = {name: row[-1].median / row[0].median for name, row in rows.items() if row[0].median}
    if not growth.get(LIMIT):
        return {}
    return {name: growth[name] / growth[LIMIT] for name in (CROPS, FULL) if name in growth}


def scaling_table(report: ScalingReport) -> Table:
    """Return a table of images per second by thread count, and of the loss relative to the decode limit."""
    rows = report.rows
    table = Table(
        title=f"{report.file.name}: source images/s by threads, views of {report.settings.size} px",
        caption=f"medians of {rows[LIMIT][0].rounds} interleaved rounds",
        box=SIMPLE_HEAD,
        pad_edge=False,
    )
    table.add_column("", no_wrap=True)
    for row in rows[LIMIT]:
        table.add_column(str(row.threads), justify="right")
    table.add_column("scaling, of the limit's", justify="right")
    for name, found in rows.items():
        relative = report.relative_scaling.get(name)
        table.add_row(
            name,
            *("failed" if row.error else f"{row.median:,.0f}" for row in found),
            f"{relative:.0%}" if relative else "",
        )
    return table
