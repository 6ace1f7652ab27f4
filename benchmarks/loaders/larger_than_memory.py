"""The native engine on a file that is larger than its memory: "random" against "blocks".

    python -m benchmarks.loaders.larger_than_memory FILE.beton --repeat-to-mb 8000 --memory-mb 2000 --out memory.json

A control group limits the process, its page cache included.  Where none can be made, the result says "not measured" and
why; what is then measured instead, a cold page cache without a limit, has another name.
"""

import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import tyro

from benchmarks.core.machine import Machine, describe_machine
from benchmarks.core.memory_limit import join, limited_group
from benchmarks.core.process import call_in_process
from benchmarks.core.report import check_at_least_1, check_out, save
from fastclr.arguments import parse
from pipelines.beton import BetonReader, BetonWriter
from pipelines.system.cpus import cores

ORDERS = ("random", "blocks")
LIMITED: Literal["limited memory"] = "limited memory"
COLD: Literal["cold page cache, memory not limited"] = "cold page cache, memory not limited"
WARM_BATCHES = 4
TIMEOUT_S = 3600.0


@dataclass(frozen=True)
class Options:
    """Measure both orders on a file that is larger than the memory of the process."""

    file: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE.beton")]
    """A file of photos."""
    repeat_to_mb: int = 0
    """Copy its images again and again into a temporary file of this size, in MB; 0: take the file as it is."""
    memory_mb: int = 2000
    """Limit of the process, in MB; Python, torch and the batches take about 500 of it."""
    seconds: float = 60.0
    """Time of each order."""
    size: int = 224
    """Height and width of a view, pixels."""
    batch_size: int = 64
    threads: int = field(default_factory=cores)
    scratch: Path | None = None
    """Folder for the temporary file; None: the system's. In memory (tmpfs) nothing would be read."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE.json")] = None
    """Where to write the result."""

    def __post_init__(self) -> None:
        check_at_least_1(self, "memory_mb", "size", "batch_size", "threads")
        check_out(self.out)


@dataclass(frozen=True)
class OrderRow:
    """One order, in a process of its own that began without a page of the file in memory."""

    order: str
    images: int
    seconds: float
    images_per_s: float
    read_bytes_per_image: float
    """Bytes that the process had the system fetch from the disk, by image: the stored size is `FileFacts`' mean."""
    peak_bytes: int
    """Largest resident memory of the process."""


@dataclass(frozen=True)
class MemoryReport:
    """Both orders on a file larger than memory."""

    machine: Machine
    conditions: Literal["limited memory", "cold page cache, memory not limited"]
    not_measured: str
    """Why the memory could not be limited; "" where it was."""
    memory_bytes: int
    """The limit; 0: none."""
    file_bytes: int
    images: int
    mean_stored_bytes: float
    """Bytes of an image in the file."""
    size: int
    threads: int
    rows: list[OrderRow]
    benchmark: str = "file larger than memory"
    derived: ClassVar[tuple[str, ...]] = ("blocks_over_random",)

    @property
    def blocks_over_random(self) -> float:
        """Ratio of the speeds."""
        speeds = {row.order: row.images_per_s for row in self.rows}
        return speeds["blocks"] / speeds["random"]


def main(argv: list[str]) -> None:
    """Run the measurement."""
    options = parse(Options, argv, "python -m benchmarks.loaders.larger_than_memory")
    with _repeated(options) as file:
        with BetonReader(file) as reader:
            facts = len(reader), float(reader.sizes.mean())
        limit, reason = options.memory_mb * 10**6, ""
        rows = []
        for order in ORDERS:
            with ExitStack() as stack:
                group = None
                try:
                    group = stack.enter_context(limited_group(limit))
                except OSError as error:
                    limit, reason = 0, str(error)
                drop_from_cache(file)
                rows.append(
                    call_in_process(measure, file, order, options, group, facts[0], timeout_s=TIMEOUT_S)
                )
        report = MemoryReport(
            describe_machine(),
            COLD if reason else LIMITED,
            reason,
            limit,
            file.stat().st_size,
            *facts,
            options.size,
            options.threads,
            rows,
        )
    if reason:
        print(f"limited memory: not measured, {reason}")
    print(f"{report.conditions}: a file of {report.file_bytes / 1e9:.2f} GB, limit {limit / 1e9:.2f} GB")
    for row in rows:
        print(
            f"{row.order:<8} {row.images_per_s:>8,.0f} images/s, {row.read_bytes_per_image / 1e3:,.1f} KB read "
            f"per image of {report.mean_stored_bytes / 1e3:,.1f} KB"
        )
    if options.out is not None:
        save(options.out, report)


def measure(file: Path, order: str, options: Options, group: Path | None, num_images: int) -> OrderRow:
    """Load crops for some time, or two epochs; in a process of its own, which joins the group first."""
    if group is not None:
        join(group)
    from pipelines import ViewLoader

    images, read_before, start = 0, 0, 0.0
    with ViewLoader(
        file,
        options.batch_size,
        size=options.size,
        order=order,  # type: ignore[arg-type]
        augment=False,
        num_threads=options.threads,
    ) as loader:
        batches = (batch for _ in range(2) for batch in loader)
        for number, batch in enumerate(batches):
            if number < WARM_BATCHES:  # compiled code is loaded, and threads have started
                read_before, start = _read_bytes(), time.perf_counter()
                continue
            images += len(batch)
            if time.perf_counter() - start > options.seconds:
                break
        seconds = time.perf_counter() - start
    if not images:
        raise ValueError(f"{file}: {num_images} images are too few for batches of {options.batch_size}")
    read = (_read_bytes() - read_before) / images
    peak = int(_proc("status", "VmHWM").split()[0]) * 1024
    return OrderRow(order, images, seconds, images / seconds, read, peak)


def drop_from_cache(file: Path) -> None:
    """Write a file to the disk and drop its pages from the cache: they count for the group that reads them next."""
    with open(file, "rb") as stream:
        os.fsync(stream.fileno())
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@contextmanager
def _repeated(options: Options) -> Iterator[Path]:
    """Yield the file, or a temporary one of the size asked for."""
    if not options.repeat_to_mb:
        yield options.file
        return
    with (
        tempfile.TemporaryDirectory(prefix="fastclr-memory-", dir=options.scratch) as folder,
        BetonReader(options.file) as reader,
    ):
        file = Path(folder) / "repeated.beton"
        count = max(len(reader), round(options.repeat_to_mb * 10**6 / float(reader.sizes.mean())))
        side = int(max(reader.heights.max(), reader.widths.max()))
        with BetonWriter(file, count, side) as writer:
            for number in range(count):
                index = number % len(reader)
                if reader.is_jpeg(index):
                    writer.add_jpeg(reader.image_bytes(index).tobytes(), int(reader.labels[index]))
                else:
                    writer.add_raw(reader.decode(index), int(reader.labels[index]))
        yield file


def _read_bytes() -> int:
    return int(_proc("io", "read_bytes"))


def _proc(file: str, name: str) -> str:
    lines = Path(f"/proc/self/{file}").read_text().splitlines()
    return next(line.partition(":")[2].strip() for line in lines if line.startswith(f"{name}:"))


if __name__ == "__main__":
    main(sys.argv[1:])
