"""`fastclr bench convert`: writing a .beton file, beside FFCV's own writer, on the same photos."""

import io
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Annotated, Any, Literal

import numpy as np
import tyro
from PIL import Image
from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from benchmarks.convert import ffcv_writer
from benchmarks.core.machine import describe
from benchmarks.core.process import Failed, call
from benchmarks.core.report import check_out, save
from fastclr.arguments import parse
from pipelines import BetonReader
from pipelines.convert import Encoding, FolderSource, convert
from pipelines.system.cpus import cores

COMPARED = 100
"""Images whose pixels are compared with the source."""

Writer = Literal["fastclr", "ffcv"]


@dataclass(frozen=True)
class Options:
    """Measure the conversion of a folder of images, ours and FFCV's."""

    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")]
    """A folder with one folder of images per class."""
    writers: tuple[Writer, ...] = ("fastclr", "ffcv")
    """Whose writer to measure."""
    images: int = 1000
    """Images to convert; a smaller folder is gone through as often as that takes."""
    max_side: int = 500
    """Longer side of a stored image, pixels."""
    quality: int = 90
    """JPEG quality of what is encoded."""
    rounds: int = 3
    """Rounds; every way is taken once in each."""
    workers: int = field(default_factory=cores)
    """Threads of ours, processes of FFCV's."""
    timeout_s: float = 600.0
    """A conversion that takes longer is given up, seconds."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE.json")] = None
    """Where to write the result."""

    def __post_init__(self) -> None:
        check_out(self.out)
        if min(self.rounds, self.workers, self.images) < 1:
            raise ValueError("--rounds, --workers and --images must be at least 1")
        Encoding(max_side=self.max_side, quality=self.quality)
        if not self.folder.is_dir():
            raise FileNotFoundError(f"{self.folder}: no such folder")


@dataclass
class Way:
    """A writer and how it stores images."""

    writer: Writer
    stores: Literal["keep", "recompress", "raw"]
    seconds: list[float] = field(default_factory=list)
    bytes_out: int = 0
    """Of the file, whose pages are not all full."""
    image_bytes: int = 0
    """Of the images in it."""
    pixel_error: float = 0.0
    kept: int = 0
    error: str = ""

    @property
    def name(self) -> str:
        what = {"keep": "--jpeg keep", "recompress": "--jpeg recompress", "raw": "--mode raw"}
        theirs = {"recompress": "jpg", "raw": "raw"}
        return f"fastclr {what[self.stores]}" if self.writer == "fastclr" else f"FFCV {theirs[self.stores]}"


class RepeatedFolder(FolderSource):
    """A folder whose images come as often as it takes to have `images`."""

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
    RepeatedFolder(options.folder, options.images)  # says what is wrong with it, before each way does
    ways = [
        Way("fastclr", stores) for stores in ("keep", "recompress", "raw") if "fastclr" in options.writers
    ]
    ways += [Way("ffcv", stores) for stores in ("recompress", "raw") if "ffcv" in options.writers]
    with console.status("converting"), tempfile.TemporaryDirectory(prefix="bench-convert-") as folder:
        for _ in range(options.rounds):
            for way in ways:
                if not way.error:
                    _measure(way, options, Path(folder) / "out.beton")
    report = {
        "benchmark": "convert",
        "machine": describe(),
        "settings": {
            name: getattr(options, name) for name in ("images", "max_side", "quality", "rounds", "workers")
        }
        | {"folder": options.folder.resolve().name},
        "results": [_as_json(way, options.images) for way in ways],
    }
    console.print(_table(report))
    if options.out is not None:
        save(options.out, report)
        console.print(f"wrote {options.out}")


def _measure(way: Way, options: Options, out: Path) -> None:
    function = _convert_ours if way.writer == "fastclr" else _convert_ffcv
    try:
        seconds, way.kept, skipped = call(function, way.stores, options, out, timeout_s=options.timeout_s)
        way.seconds.append(seconds)
        if way.bytes_out == 0:
            way.bytes_out = out.stat().st_size
            with BetonReader(out) as reader:
                way.image_bytes = int(reader.sizes.sum())
            way.pixel_error = pixel_error(out, options.folder, skipped)
    except Failed as error:
        way.error = str(error)
    finally:
        out.unlink(missing_ok=True)


def _convert_ours(stores: str, options: Options, out: Path) -> tuple[float, int, set[str]]:
    """Seconds, images kept byte for byte, names of those left out."""
    encoding = Encoding(
        jpeg="keep" if stores == "keep" else "recompress",
        mode="raw" if stores == "raw" else "jpg",
        max_side=options.max_side,
        quality=options.quality,
    )
    source = RepeatedFolder(options.folder, options.images)
    start = time.perf_counter()
    report = convert(source, out, encoding, order="source", workers=options.workers)
    return time.perf_counter() - start, report.kept, set(report.skipped)


def _convert_ffcv(stores: str, options: Options, out: Path) -> tuple[float, int, set[str]]:
    mode, side, quality = "raw" if stores == "raw" else "jpg", options.max_side, options.quality
    seconds = ffcv_writer.write(options.folder, out, mode, side, quality, options.workers, options.images)
    return seconds, 0, set()


def pixel_error(file: Path, folder: Path, skipped: set[str]) -> float:
    """Mean absolute difference to the sources' pixels, gray levels, over the first 100 images of a file.

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


def _as_json(way: Way, images: int) -> dict[str, Any]:
    rates = sorted(images / seconds for seconds in way.seconds)
    spread = {"median": median(rates), "low": rates[0], "high": rates[-1]} if rates else {}
    return {
        "name": way.name,
        "rounds": len(rates),
        "images_per_s": [images / seconds for seconds in way.seconds],
        **spread,
        "bytes_out": way.bytes_out,
        "image_bytes": way.image_bytes,
        "kept": way.kept,
        "pixel_error": way.pixel_error,
        "error": way.error,
    }


def _table(report: dict[str, Any]) -> Group:
    settings = report["settings"]
    table = Table(
        title=f"{settings['folder']}: {settings['images']} images, longer side ≤ {settings['max_side']}, "
        f"quality {settings['quality']}, {settings['workers']} workers",
        caption=f"medians of {settings['rounds']} interleaved rounds; error: mean difference to the source, "
        "gray levels; kept: byte for byte",
        box=SIMPLE_HEAD,
        pad_edge=False,
    )
    table.add_column("", no_wrap=True)
    for heading in ("images/s", "low–high", "MB", "error", "kept"):
        table.add_column(heading, justify="right", no_wrap=True)
    errors = []
    for row in report["results"]:
        if row["error"]:
            errors.append(f"{row['name']}: {row['error'].splitlines()[0]}")
            table.add_row(row["name"], "failed")
        else:
            table.add_row(
                row["name"],
                f"{row['median']:,.0f}",
                f"{row['low']:,.0f}–{row['high']:,.0f}",
                f"{row['bytes_out'] / 1e6:,.1f}",
                f"{row['pixel_error']:.2f}",
                f"{row['kept'] / settings['images']:.0%}",
            )
    return Group(table, *map(Text, errors))  # 'fastclr[ffcv]' is no markup
