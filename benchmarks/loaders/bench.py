"""`fastclr bench loader`: our engines and their peers, interleaved, in source images per second."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Annotated, Literal

import numpy as np
import tyro
from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from benchmarks.core.harness import LAST_BATCHES, WARM_BATCHES, Case, LoaderRow, measure_in_turn
from benchmarks.core.machine import describe_machine
from benchmarks.core.report import check_at_least_1, check_out, save
from benchmarks.loaders.ours import OurLoader
from benchmarks.loaders.peers.dali_graph import DaliGraph
from benchmarks.loaders.peers.decode_limit import DecodeLimit
from benchmarks.loaders.peers.ffcv_loader import FfcvLoader
from benchmarks.loaders.peers.lightly_loader import LightlyLoader
from benchmarks.loaders.peers.spdl_loader import SpdlLoader
from benchmarks.loaders.peers.torchvision_loader import TorchvisionLoader
from benchmarks.loaders.plot import plot_loader, plot_scaling
from benchmarks.loaders.report import (
    WORKLOADS,
    FileFacts,
    LoaderReport,
    LoaderSettings,
    ScalingReport,
    StoredAs,
)
from benchmarks.loaders.scaling import measure_scaling, relative_scaling, scaling_table
from benchmarks.loaders.without_markers import without_markers
from fastclr.arguments import DataSet, FieldNames, Fields, data_set, parse
from pipelines import BetonReader
from pipelines.beton import Files
from pipelines.convert import FolderSource
from pipelines.engines import EngineName
from pipelines.engines.ffcv.one_file import reject_sets
from pipelines.system.cpus import cores

Workload = Literal["crops", "full", "center"]
CROPS: Workload = "crops"
FULL: Workload = "full"
CENTER: Workload = "center"


@dataclass(frozen=True)
class Options:
    """Measure loaders side by side on a file."""

    files: DataSet
    """Images; `fastclr convert` makes the file, or the files of a set."""
    folder: Path | None = None
    """The image folder that it was made from: adds torchvision's ImageFolder on the original files."""
    sizes: tuple[int, ...] = (224,)
    """Heights and widths of a view, pixels: one report each, with the size in its name if there are several."""
    engines: tuple[EngineName, ...] = ("native",)
    """Our engines to measure."""
    peers: tuple[Literal["torchvision", "ffcv", "dali", "lightly", "spdl"], ...] = ("torchvision",)
    """What else to measure; a peer whose package is missing gets a row that says how to install it."""
    only: tuple[Workload, ...] = (CROPS, FULL)
    """What to measure: two crops without augmentation, the full augmentation, or (our engines only) the center crop of
    an evaluation."""
    scaling: tyro.conf.FlagCreatePairsOff[bool] = False
    """Measure instead how the native engine and the decode limit grow from one thread to all."""
    rounds: int = 5
    """Rounds; every case runs once in each, for a second or more."""
    threads: int = field(default_factory=cores)
    """Threads, or worker processes, of every case."""
    fields: Fields = field(default_factory=FieldNames)
    batch_size: int | None = None
    """Images a batch; None: 64, or less where an epoch would be too short."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE.json")] = None
    """Where to write the result; the plot goes beside it."""

    @property
    def names(self) -> tuple[str | None, str | None]:
        return self.fields.image_field, self.fields.label_field

    @property
    def file(self) -> Path | tuple[Path, ...]:
        return data_set(self.files)

    def __post_init__(self) -> None:
        check_at_least_1(self, "rounds", "threads", "batch_size")
        if not self.sizes or min(self.sizes) < 8:
            raise ValueError(f"--sizes takes numbers of at least 8 pixels, got {self.sizes}")
        check_out(self.out)
        if self.folder is not None and not self.folder.is_dir():
            raise FileNotFoundError(f"--folder {self.folder}: no such folder")


def main(argv: list[str]) -> None:
    """Run the command."""
    options = parse(Options, argv, "fastclr bench loader")
    console = Console()
    with BetonReader(options.file, *options.fields) as reader:
        batch_size = options.batch_size or _batch_size(len(reader))
        if batch_size * (WARM_BATCHES + LAST_BATCHES + 1) > len(reader):
            raise ValueError(
                f"{reader.path} holds {len(reader)} images, too few for batches of {batch_size}; lower --batch-size"
            )
        file = _describe_file(reader)
        # a folder of shards would pass for a folder of images
        options = replace(options, files=reader.files)
        if len(reader.files) > 1 and ("ffcv" in options.engines or "ffcv" in options.peers):
            reject_sets(reader)
    if options.folder is not None and FolderSource(options.folder).class_names is None:
        raise ValueError(
            f"--folder {options.folder} has no class folders, which torchvision's ImageFolder needs"
        )
    _read_through(reader.files)
    for size in options.sizes:
        settings = LoaderSettings(size, options.threads, batch_size)
        report = (_scaling if options.scaling else _side_by_side)(options, file, settings, console)
        if not console.is_terminal:
            console.line()  # there, Live leaves the last line open
        if options.out is not None:
            suffix = f"-{size}" if len(options.sizes) > 1 else ""
            out = options.out.with_stem(options.out.stem + suffix)
            save(out, report)
            if isinstance(report, ScalingReport):
                plot_scaling(report, out.with_suffix(".svg"))
            else:
                plot_loader(report, out.with_suffix(".svg"))
            console.print(f"wrote {out} and {out.with_suffix('.svg')}", markup=False)


def _side_by_side(
    options: Options, file: FileFacts, settings: LoaderSettings, console: Console
) -> LoaderReport:
    machine = describe_machine()
    with (
        without_markers(options.file, options.fields) as plain,
        Live(console=console, auto_refresh=False) as live,
    ):
        groups = {
            workload: _cases(options, plain, settings, workload, file.images) for workload in options.only
        }
        limit = DecodeLimit("decode limit", plain, settings.batch_size, options.threads)
        cases: list[Case] = [limit, *(case for group in groups.values() for case in group)]
        for found in measure_in_turn(cases, options.rounds):
            rest = iter(found[1:])
            results = {str(workload): [next(rest) for _ in group] for workload, group in groups.items()}
            report = LoaderReport(machine, file, settings, found[0], results)
            live.update(side_by_side_table(report), refresh=True)
    return report


def _scaling(options: Options, file: FileFacts, settings: LoaderSettings, console: Console) -> ScalingReport:
    machine = describe_machine()
    with (
        without_markers(options.file, options.fields) as plain,
        Live(console=console, auto_refresh=False) as live,
    ):
        for rows in measure_scaling(options.file, plain, options.rounds, settings, options.names):
            report = ScalingReport(machine, file, settings, rows, relative_scaling(rows))
            live.update(scaling_table(report), refresh=True)
    return report


def _batch_size(num_samples: int) -> int:
    """Return a batch size of at most 64, so small that an epoch has 30 batches to count from."""
    batch_size = min(64, num_samples // (WARM_BATCHES + LAST_BATCHES + 30))
    if batch_size < 1:
        minimum = WARM_BATCHES + LAST_BATCHES + 30
        raise ValueError(
            f"{num_samples} images are too few to measure a loader; the file must hold at least {minimum}"
        )
    return batch_size


def _cases(
    options: Options, plain: Files, settings: LoaderSettings, workload: Workload, num_images: int
) -> list[Case]:
    """Return our engines, on the file, and the peers, on the same images without restart markers (`plain`)."""
    threads, size, batch_size = settings.threads, settings.size, settings.batch_size
    shape = (size, workload == FULL, batch_size, threads)
    center = workload == CENTER
    cases: list[Case] = [
        OurLoader(f"fastclr {engine}", options.file, engine, *shape, center=center, fields=options.names)
        for engine in options.engines
    ]
    if center:
        return cases
    if "ffcv" in options.peers:
        assert isinstance(plain, Path)
        cases.append(FfcvLoader("FFCV, two pipelines", plain, *shape))
    if "dali" in options.peers:
        cases.append(DaliGraph("DALI graph, CPU", plain, *shape))
    if "spdl" in options.peers and workload == CROPS:
        cases.append(SpdlLoader("SPDL, decoded once", plain, size, batch_size, threads))
    if "lightly" in options.peers and workload == FULL:
        cases.append(LightlyLoader("lightly SimCLRTransform", plain, size, batch_size, threads))
    if "torchvision" in options.peers:
        cases.append(TorchvisionLoader("torchvision, same JPEGs", plain, *shape))
        if options.folder is not None:
            cases.append(
                TorchvisionLoader("torchvision, folder", options.folder, *shape, repeat_to=num_images)
            )
    return cases


def _read_through(files: Sequence[Path]) -> None:
    """Fill the page cache, so that the first case does not read from the disk what later ones find in memory."""
    for file in files:
        with file.open("rb") as stream:
            while stream.read(1 << 24):
                pass


def _describe_file(reader: BetonReader) -> FileFacts:
    convert = (reader.sidecar or {}).get("options", {})
    restart = convert.get("restart")
    return FileFacts(
        name=reader.path.name,
        images=len(reader),
        bytes=reader.file_bytes,
        median_longer_side=int(np.median(np.maximum(reader.heights, reader.widths))),
        convert=StoredAs(
            **{name: convert.get(name) for name in ("mode", "jpeg", "max_side", "quality")},
            restart=None if restart is None else str(restart),
        ),
    )


def side_by_side_table(report: LoaderReport) -> Group:
    limit, file, settings = report.decode_limit, report.file, report.settings
    table = Table(
        title=f"{file.name}: {file.images} images, views of {settings.size} px, {settings.threads} threads",
        caption=f"medians of {limit.rounds} interleaved rounds; limit: share of the "
        "decode limit; CPU ms: of all processes, per image; first: seconds to the first batch, warm",
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    table.add_column("", no_wrap=True)
    for heading in ("images/s", "low–high", "limit", "CPU ms", "MiB", "first"):
        table.add_column(heading, justify="right", no_wrap=True)
    remarks = []

    def add(row: LoaderRow) -> None:
        if row.error:
            remarks.append(f"{row.name}: {row.error}")
            table.add_row(row.name, "failed")
        elif row.rounds:
            if row.lacks:
                remarks.append(f"{row.name} lacks {row.lacks}")
            table.add_row(
                row.name,
                f"{row.median:,.0f}",
                f"{row.low:,.0f}–{row.high:,.0f}",
                f"{row.median / limit.median:.0%}" if limit.rounds else "",
                f"{median(row.cpu_s_per_1000):.2f}",
                f"{row.peak_bytes / 2**20:,.0f}",
                f"{row.first_batch_s:.2f}",
            )

    add(limit)
    for workload, rows in report.results.items():
        table.add_section()
        table.add_row(WORKLOADS[workload], style="bold")
        for row in rows:
            add(row)
    return Group(table, *map(Text, dict.fromkeys(remarks)))  # Text: 'fastclr[ffcv]' is not markup
