"""The native engine on a set of several files against one file of the same images, interleaved.

python -m benchmarks.loaders.sets FILE.beton --shards 16 --out sets.json
"""

import itertools
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Annotated, ClassVar

import numpy as np
import tyro

from benchmarks.core.harness import Case, LoaderRow, measure_in_turn
from benchmarks.core.machine import Machine, describe_machine
from benchmarks.core.report import check_at_least_1, check_out, save
from benchmarks.loaders.ours import OurLoader
from fastclr.arguments import parse
from pipelines.beton import BetonReader, BetonWriter
from pipelines.beton.sets import shard_path
from pipelines.system.cpus import cores


@dataclass(frozen=True)
class Options:
    """Measure a set of several files against one file of the same images."""

    file: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE.beton")]
    """The one file; its images are copied into a set."""
    shards: int = 16
    """Files of the set."""
    size: int = 224
    """Height and width of a view, pixels."""
    batch_size: int = 64
    rounds: int = 7
    """Rounds; each case runs once in each."""
    threads: int = field(default_factory=cores)
    scratch: Path | None = None
    """Folder for the set; None: a temporary one."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE.json")] = None
    """Where to write the result."""

    def __post_init__(self) -> None:
        check_at_least_1(self, "shards", "size", "batch_size", "rounds", "threads")
        check_out(self.out)


@dataclass(frozen=True)
class SetsReport:
    """One file and a set, with and without augmentation."""

    machine: Machine
    images: int
    shards: int
    size: int
    threads: int
    rows: list[LoaderRow]
    """Crops of one file, crops of the set, views of one file, views of the set."""
    benchmark: str = "sets of files"
    derived: ClassVar[tuple[str, ...]] = ("ratios",)

    @property
    def ratios(self) -> dict[str, float]:
        """Speed of the set over that of the file: medians of the rounds' ratios."""
        found = {}
        for name, one, several in zip(("crops", "views"), self.rows[::2], self.rows[1::2], strict=True):
            pairs = zip(one.images_per_s, several.images_per_s, strict=True)
            found[name] = median(theirs / ours for ours, theirs in pairs)
        return found


def main(argv: list[str]) -> None:
    """Run the measurement."""
    options = parse(Options, argv, "python -m benchmarks.loaders.sets")
    with tempfile.TemporaryDirectory(prefix="fastclr-sets-", dir=options.scratch) as folder:
        files, images = split(options.file, Path(folder), options.shards)
        cases: list[Case] = [
            OurLoader(
                f"{name}, {what}", data, "native", options.size, augment, options.batch_size, options.threads
            )
            for what, augment in (("crops", False), ("views", True))
            for name, data in (("one file", options.file), (f"{options.shards} files", files))
        ]
        *_, rows = measure_in_turn(cases, options.rounds)
    for row in rows:
        print(f"{row.name:<20} {row.error or f'{row.median:,.0f} images/s'}")
    report = SetsReport(describe_machine(), images, options.shards, options.size, options.threads, list(rows))
    print("set / one file:", {name: round(ratio, 3) for name, ratio in report.ratios.items()})
    if options.out is not None:
        save(options.out, report)


def split(file: Path, folder: Path, count: int) -> tuple[list[Path], int]:
    """Copy a file's images into a set, in their order; return its files, and how many images there are."""
    paths = [shard_path(folder / "set.beton", shard, count) for shard in range(count)]
    with BetonReader(file) as reader:
        bounds = np.linspace(0, len(reader), count + 1).astype(int).tolist()
        side = int(max(reader.heights.max(), reader.widths.max()))
        for path, (first, end) in zip(paths, itertools.pairwise(bounds), strict=True):
            with BetonWriter(path, end - first, side) as writer:
                for index in range(first, end):
                    label = int(reader.labels[index])
                    if reader.is_jpeg(index):
                        writer.add_jpeg(reader.image_bytes(index).tobytes(), label)
                    else:
                        writer.add_raw(reader.decode(index), label)
        return paths, len(reader)


if __name__ == "__main__":
    main(sys.argv[1:])
