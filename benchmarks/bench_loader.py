"""`fastclr bench loader`: our engines and their peers, interleaved, in source images per second."""

import os
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import numpy as np
import tyro
from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

from benchmarks.baselines.decode_limit import DecodeLimit
from benchmarks.baselines.torchvision_loader import TorchvisionLoader
from benchmarks.harness import LAST_BATCHES, WARM_BATCHES, Case, measure
from benchmarks.machine import describe
from benchmarks.plot import plot_loader
from benchmarks.report import save
from pipelines import BetonReader, ViewSpec
from pipelines.beton.sidecar import read_sidecar

CROPS, FULL = "crops", "full"
TITLES = {
    CROPS: "two crops, uint8",
    FULL: "full augmentation, float32",
}


@dataclass
class OurLoader:
    """TwoViewLoader, or for crops only the engine beneath it, which gives uint8."""

    name: str
    file: Path
    engine: str
    size: int
    augment: bool
    batch_size: int
    num_threads: int

    def open(self) -> Any:
        from pipelines import TwoViewLoader
        from pipelines.engines import ENGINES
        from pipelines.order import Sampler

        spec = ViewSpec.simclr(self.size)
        if self.augment:
            return TwoViewLoader(
                self.file, self.batch_size, spec=spec, engine=self.engine, num_threads=self.num_threads
            )
        reader = BetonReader(self.file)
        sampler = Sampler(reader.heights, reader.widths, spec, self.batch_size)
        options = {"augment": False} if self.engine in ("native", "resident") else {}
        return ENGINES[self.engine](reader, sampler, num_threads=self.num_threads, **options)

    def epoch(self, loader: Any) -> Generator[int]:
        if self.augment:
            for batch in loader:
                yield len(batch)
        else:
            for plan, _ in loader.run(loader.sampler.plans(0)):
                yield len(plan.indices)


@dataclass(frozen=True)
class Options:
    """Measure loaders side by side on a file."""

    file: Annotated[Path, tyro.conf.Positional]
    """A .beton file."""
    folder: Path | None = None
    """The image folder that it was made from: adds torchvision's ImageFolder on the original files."""
    size: int = 224
    """Height and width of a view, pixels."""
    engines: tuple[str, ...] = ("native",)
    """Our engines to measure."""
    only: tuple[str, ...] = (CROPS, FULL)
    """What to measure: crops, full, or both."""
    rounds: int = 5
    """Rounds; every case runs once in each, for a second or more."""
    threads: int = len(os.sched_getaffinity(0))
    """Threads, or worker processes, of every case."""
    batch_size: int | None = None
    """Images a batch; default: 64, or less where an epoch would be too short."""
    out: Path | None = None
    """Where to write the result: a .json file; the plot goes beside it."""

    def __post_init__(self) -> None:
        if unknown := set(self.only) - {CROPS, FULL}:
            raise ValueError(f"--only takes {CROPS} and {FULL}, got {', '.join(sorted(unknown))}")
        if self.rounds < 1 or self.threads < 1:
            raise ValueError("--rounds and --threads must be at least 1")
        if self.folder is not None and not self.folder.is_dir():
            raise FileNotFoundError(f"--folder {self.folder}: no such folder")


def main(argv: list[str]) -> None:
    options = tyro.cli(Options, args=argv, prog="fastclr bench loader")
    console = Console()
    with BetonReader(options.file) as reader:
        batch_size = options.batch_size or _batch_size(len(reader))
        file = _describe_file(reader)
    limit = DecodeLimit("decode limit", options.file, batch_size, options.threads)
    groups = {what: _cases(options, what == FULL, batch_size, file["images"]) for what in options.only}
    cases: list[Case] = [limit, *(case for group in groups.values() for case in group)]
    report: dict[str, Any] = {
        "benchmark": "loader",
        "machine": describe(),
        "file": file,
        "settings": {"size": options.size, "threads": options.threads, "batch_size": batch_size},
    }
    with Live(console=console, auto_refresh=False) as live:
        for results in measure(cases, options.rounds):
            found = [result.as_json() for result in results]
            report["decode_limit"], rest = found[0], iter(found[1:])
            report["results"] = {what: [next(rest) for _ in group] for what, group in groups.items()}
            live.update(_table(report), refresh=True)
    if options.out is not None:
        save(options.out, report)
        plot_loader(report, options.out.with_suffix(".svg"))
        console.print(f"wrote {options.out} and {options.out.with_suffix('.svg')}")


def _batch_size(num_samples: int) -> int:
    """At most 64, and small enough that an epoch has 30 batches to count from."""
    batch_size = min(64, num_samples // (WARM_BATCHES + LAST_BATCHES + 30))
    if batch_size < 1:
        need = WARM_BATCHES + LAST_BATCHES + 30
        raise ValueError(
            f"{num_samples} images are too few to measure a loader; the file must hold at least {need}"
        )
    return batch_size


def _cases(options: Options, augment: bool, batch_size: int, num_images: int) -> list[Case]:
    shape = (options.size, augment, batch_size, options.threads)
    cases: list[Case] = [
        OurLoader(f"fastclr {engine}", options.file, engine, *shape) for engine in options.engines
    ]
    cases.append(TorchvisionLoader("torchvision, same JPEGs", options.file, *shape))
    if options.folder is not None:
        cases.append(TorchvisionLoader("torchvision, folder", options.folder, *shape, repeat_to=num_images))
    return cases


def _describe_file(reader: BetonReader) -> dict[str, Any]:
    """What the figures depend on: how large the images are, and how they were stored."""
    convert = (read_sidecar(reader.path) or {}).get("options", {})
    return {
        "name": reader.path.name,
        "images": len(reader),
        "bytes": reader.file_bytes,
        "median_longer_side": int(np.median(np.maximum(reader.heights, reader.widths))),
        "convert": {name: convert.get(name) for name in ("mode", "jpeg", "max_side", "quality")},
    }


def _table(report: dict[str, Any]) -> Group:
    limit, file, settings = report["decode_limit"], report["file"], report["settings"]
    table = Table(
        title=f"{file['name']}: {file['images']} images, views of {settings['size']} px, {settings['threads']} threads",
        caption=f"medians of {limit['rounds']} interleaved rounds; one image is two views",
        box=SIMPLE_HEAD,
        pad_edge=False,
    )
    table.add_column("", no_wrap=True)
    for heading in ("images/s", "low–high", "of limit", "CPU s/1000", "MiB", "first s"):
        table.add_column(heading, justify="right", no_wrap=True)
    errors = []

    def add(row: dict[str, Any]) -> None:
        if row["error"]:
            errors.append(f"{row['name']}: {row['error'].splitlines()[0]}")
            table.add_row(row["name"], "failed")
        elif row["rounds"]:
            table.add_row(
                row["name"],
                f"{row['median']:,.0f}",
                f"{row['low']:,.0f}–{row['high']:,.0f}",
                f"{row['median'] / limit['median']:.0%}" if limit["rounds"] else "",
                f"{median(row['cpu_s_per_1000']):.2f}",
                f"{row['peak_bytes'] / 2**20:,.0f}",
                f"{row['first_batch_s']:.2f}",
            )

    add(limit)
    for what, rows in report["results"].items():
        table.add_section()
        table.add_row(TITLES[what], style="bold")
        for row in rows:
            add(row)
    return Group(table, *errors)
