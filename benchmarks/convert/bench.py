"""`fastclr bench convert`: writing a .beton file, beside FFCV's own writer, on the same photos."""

import io
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Annotated, ClassVar, Literal

import numpy as np
import tyro
from PIL import Image
from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from benchmarks.convert import ffcv_writer
from benchmarks.core.machine import Machine, describe_machine
from benchmarks.core.process import WorkFailed, call_in_process
from benchmarks.core.report import Row, check_at_least_1, check_out, save
from fastclr.arguments import parse
from pipelines import BetonReader
from pipelines.convert import Encoding, FolderSource, convert
from pipelines.system.cpus import cores

COMPARED = 100
"""Number of images whose pixels are compared with the source."""

FFCV_JPG = "FFCV jpg"
"""Row that ours are compared with."""

Writer = Literal["fastclr", "ffcv"]


@dataclass(frozen=True)
class Options:
    """Measure the conversion of a folder of images, ours and FFCV's."""

    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")]
    """A folder with one folder of images per class."""
    writers: tuple[Writer, ...] = ("fastclr", "ffcv")
    """Whose writer to measure."""
    images: int = 1000
    """Images to convert; a smaller folder is repeated."""
    max_side: int = 500
    """Longer side of a stored image, pixels."""
    quality: int = 90
    """JPEG quality of encoded images."""
    rounds: int = 3
    """Rounds; every writer runs once in each."""
    workers: int = field(default_factory=cores)
    """Threads of ours, processes of FFCV's."""
    timeout_s: float = 600.0
    """Time limit of a conversion, seconds."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE.json")] = None
    """Where to write the result."""

    def __post_init__(self) -> None:
        check_out(self.out)
        check_at_least_1(self, "rounds", "workers", "images")
        Encoding(max_side=self.max_side, quality=self.quality)
        if not self.folder.is_dir():
            raise FileNotFoundError(f"{self.folder}: no such folder")


@dataclass(frozen=True)
class Variant:
    """A writer and how it stores images."""

    name: str
    writer: Writer
    stores: Literal["keep", "recompress", "raw"]
    verify: Literal["full", "header"] = "full"


VARIANTS = (
    Variant("fastclr --jpeg keep", "fastclr", "keep"),
    Variant("fastclr --jpeg keep --verify header", "fastclr", "keep", "header"),
    Variant("fastclr --jpeg recompress", "fastclr", "recompress"),
    Variant("fastclr --mode raw", "fastclr", "raw"),
    Variant(FFCV_JPG, "ffcv", "recompress"),
    Variant("FFCV raw", "ffcv", "raw"),
)


@dataclass(frozen=True, kw_only=True)
class ConvertRow(Row):
    """Measurements of a writer."""

    bytes_out: int = 0
    """Size of the file, including unused space in its pages."""
    image_bytes: int = 0
    """Size of the images in it."""
    kept: int = 0
    """Images that were stored byte for byte."""
    pixel_error: float = 0.0
    """Mean absolute difference to the source, gray levels."""


@dataclass(frozen=True)
class ConvertSettings:
    """The images that were converted, and the settings."""

    folder: str
    images: int
    max_side: int
    quality: int
    rounds: int
    workers: int


@dataclass(frozen=True)
class ConvertReport:
    """Writers side by side."""

    machine: Machine
    settings: ConvertSettings
    results: list[ConvertRow]
    benchmark: str = "convert"
    derived: ClassVar[tuple[str, ...]] = ("over_ffcv",)

    @property
    def over_ffcv(self) -> dict[str, float]:
        """Speed of each of our writers over that of FFCV's own, to JPEGs: medians of the rounds' ratios."""
        theirs = next((row for row in self.results if row.name == FFCV_JPG and row.rounds), None)
        if theirs is None:
            return {}
        return {
            row.name: median(a / b for a, b in zip(row.images_per_s, theirs.images_per_s, strict=True))
            for row in self.results
            if row.name.startswith("fastclr") and row.rounds == theirs.rounds
        }


class RepeatedFolder(FolderSource):
    """A folder whose images are repeated until there are `images` of them."""

    def __init__(self, root: Path, images: int) -> None:
        super().__init__(root)
        self.unique = len(self.labels)
        self.labels = np.resize(self.labels, images)

    def item(self, index: int) -> str:
        return super().item(index % self.unique)

    def read(self, index: int) -> bytes:
        return super().read(index % self.unique)


def main(argv: list[str]) -> None:
    """Run the command."""
    options = parse(Options, argv, "fastclr bench convert")
    console = Console()
    RepeatedFolder(options.folder, options.images)  # raises what is wrong with it, before any writer does
    variants = [variant for variant in VARIANTS if variant.writer in options.writers]
    rows = [ConvertRow(name=variant.name) for variant in variants]
    with console.status("converting"), tempfile.TemporaryDirectory(prefix="bench-convert-") as folder:
        for _ in range(options.rounds):
            for place, variant in enumerate(variants):
                if not rows[place].error:
                    rows[place] = _measure_round(rows[place], variant, options, Path(folder) / "out.beton")
    settings = ConvertSettings(
        options.folder.resolve().name,
        options.images,
        options.max_side,
        options.quality,
        options.rounds,
        options.workers,
    )
    report = ConvertReport(describe_machine(), settings, rows)
    console.print(_table(report))
    if options.out is not None:
        save(options.out, report)
        console.print(f"wrote {options.out}", markup=False)


def _measure_round(row: ConvertRow, variant: Variant, options: Options, out: Path) -> ConvertRow:
    """Return the row with one more round; the first one tells the sizes and the pixels' error, too."""
    function = _convert_ours if variant.writer == "fastclr" else _convert_ffcv
    try:
        seconds, kept, skipped = call_in_process(function, variant, options, out, timeout_s=options.timeout_s)
        row = replace(row, images_per_s=[*row.images_per_s, options.images / seconds], kept=kept)
        if row.rounds > 1:
            return row
        with BetonReader(out) as reader:
            image_bytes = int(reader.sizes.sum())
        error = pixel_error(out, options.folder, skipped)
        return replace(row, bytes_out=out.stat().st_size, image_bytes=image_bytes, pixel_error=error)
    except WorkFailed as error:
        return replace(row, error=str(error))
    finally:
        out.unlink(missing_ok=True)


def _convert_ours(variant: Variant, options: Options, out: Path) -> tuple[float, int, set[str]]:
    """Return the seconds, the images kept byte for byte, and the names of those left out."""
    encoding = Encoding(
        jpeg="keep" if variant.stores == "keep" else "recompress",
        mode="raw" if variant.stores == "raw" else "jpg",
        verify=variant.verify,
        max_side=options.max_side,
        quality=options.quality,
    )
    source = RepeatedFolder(options.folder, options.images)
    start = time.perf_counter()
    report = convert(source, out, encoding, order="source", workers=options.workers)
    return time.perf_counter() - start, report.kept, set(report.skipped)


def _convert_ffcv(variant: Variant, options: Options, out: Path) -> tuple[float, int, set[str]]:
    mode, side, quality = "raw" if variant.stores == "raw" else "jpg", options.max_side, options.quality
    seconds = ffcv_writer.write(options.folder, out, mode, side, quality, options.workers, options.images)
    return seconds, 0, set()


def pixel_error(file: Path, folder: Path, skipped: set[str]) -> float:
    """Return the mean absolute difference to the sources' pixels, gray levels, over the first 100 images of a file.

    A source is what PIL decodes; where the stored image is smaller, PIL's bicubic resize of it (antialiased;
    neither writer uses that one: ours has Lanczos, FFCV's averages areas).

    Args:
        file: written in the source's order.
        folder: the source.
        skipped: names of images that are not in the file.
    """
    source = FolderSource(folder)
    numbers = [number for number in range(len(source.labels)) if source.item(number) not in skipped]
    total, count = 0.0, 0
    with BetonReader(file) as reader:
        for index, number in zip(range(min(COMPARED, len(reader))), numbers, strict=False):
            stored, _ = reader[index]
            image = Image.open(io.BytesIO(source.read(number))).convert("RGB")
            height, width = stored.shape[:2]
            if image.size != (width, height):
                image = image.resize((width, height), Image.Resampling.BICUBIC)
            total += float(np.abs(np.asarray(image, np.int16) - stored).mean())
            count += 1
    return total / count


def _table(report: ConvertReport) -> Group:
    settings = report.settings
    table = Table(
        title=f"{settings.folder}: {settings.images} images, longer side ≤ {settings.max_side}, "
        f"quality {settings.quality}, {settings.workers} workers",
        caption=f"medians of {settings.rounds} interleaved rounds; error: mean difference to the source, "
        "gray levels; kept: byte for byte; × FFCV: median of the rounds' ratios",
        box=SIMPLE_HEAD,
        pad_edge=False,
    )
    table.add_column("", no_wrap=True)
    for heading in ("images/s", "low–high", "MB", "error", "kept", "× FFCV"):
        table.add_column(heading, justify="right", no_wrap=True)
    errors, ratios = [], report.over_ffcv
    for row in report.results:
        if row.error:
            errors.append(f"{row.name}: {row.error}")
            table.add_row(row.name, "failed")
        else:
            table.add_row(
                row.name,
                f"{row.median:,.0f}",
                f"{row.low:,.0f}–{row.high:,.0f}",
                f"{row.bytes_out / 1e6:,.1f}",
                f"{row.pixel_error:.2f}",
                f"{row.kept / settings.images:.0%}",
                f"{ratios[row.name]:.1f}" if row.name in ratios else "",
            )
    return Group(table, *map(Text, errors))  # Text: 'fastclr[ffcv]' is not markup
