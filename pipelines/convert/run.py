"""The conversion: worker threads encode, one thread writes in order.

Threads and not processes: reading, decoding, resizing and encoding all release the interpreter's lock, so
threads keep the cores as busy, start at once, and leave no orphan when the job is stopped or killed.
"""

import platform
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from pipelines.beton import BetonWriter
from pipelines.beton.sidecar import FORMAT, check_sidecar_path, write_sidecar
from pipelines.convert.encode import Encoding, Stored, encode
from pipelines.convert.memory_budget import MemoryBudget
from pipelines.convert.pillow import without_warnings
from pipelines.convert.sources import Source
from pipelines.convert.workers import map_in_order
from pipelines.system.memory import available_memory
from pipelines.system.versions import package_version
from pipelines.views.philox import philox4x32, split_seed

_ORDER_STREAM = (1 << 31) + 2
"""First counter word of the keys of the file's order; an epoch's order has others."""
MEMORY_SHARE = 0.5
"""Share of the available memory that images may take while they are decoded."""


@dataclass
class Report:
    """What became of a source's images."""

    found: int
    kept: int = 0
    """Stored byte for byte."""
    transcoded: int = 0
    """Stored with restart markers added, without loss."""
    encoded: int = 0
    """Stored as a new JPEG, or as pixels."""
    skipped: dict[str, str] = field(default_factory=dict)
    """Left out: name → reason."""
    re_encoded: dict[str, list[str]] = field(default_factory=dict)
    """Not kept although that was asked for, or decoded leniently: reason → names."""
    file_bytes: int = 0
    per_class: list[int] | None = None
    """Images written of each class."""

    @property
    def written(self) -> int:
        return self.kept + self.transcoded + self.encoded


def convert(
    source: Source,
    out: Path,
    encoding: Encoding | None = None,
    *,
    order: Literal["shuffled", "source"] = "shuffled",
    seed: int = 0,
    on_error: Literal["skip", "stop"] = "skip",
    workers: int = 1,
    progress: Callable[[int], None] = lambda done: None,
    numbers: np.ndarray | None = None,
    about: dict[str, Any] | None = None,
) -> Report:
    """Write a source's images to a `.beton` file and its side-car; both appear whole or not at all.

    The bytes depend on the source, the encoding, the order and the seed, not on the number of workers.

    Args:
        source: the images.
        out: the file to write; an older one is replaced, and so is a symbolic link, not what it leads to.
        encoding: how images are stored; None for the defaults.
        order: "shuffled" mixes the classes all over the file, so that a loader which reads blocks of
            neighbours sees all of them; "source" keeps the source's order.
        seed: of the shuffle, [0, 2⁶⁴).
        on_error: what to do about an image that cannot be read: leave it out, or give up.  "stop" also gives up at
            an image that only a lenient decoder reads, of which "skip" stores what that one makes of it.
        workers: threads.
        progress: called with the number of images that are done.
        numbers: the images to write, in the order of the file; None: all of them, in `order`.
        about: further keys of the side-car.

    Raises:
        ValueError: an image is corrupt and `on_error` is "stop", or no image could be read.
        OSError: `out` cannot be written, another process writes it, there is no space left, or the name of its
            side-car is that of another file.
    """
    encoding = encoding or Encoding()
    check_sidecar_path(out)
    if numbers is None:
        numbers = numbers_in_order(source, order, seed)
    report = Report(found=len(numbers))
    written = np.zeros(len(source.labels), bool)
    with BetonWriter(out, report.found, encoding.max_side) as writer:
        with without_warnings(), closing(encode_all(source, numbers, encoding, workers)) as stream:
            for done, (number, result) in enumerate(stream, 1):
                if isinstance(result, Stored) and result.warning and on_error == "stop":
                    result = ValueError(result.warning)
                if isinstance(result, Exception):
                    _leave_out(report, source.item(number), result, on_error)
                else:
                    _add(writer, result, int(source.labels[number]))
                    written[number] = True
                    _count(report, source.item, number, result)
                progress(done)
        if not report.written:
            first = next(iter(report.skipped.items()))
            raise ValueError(
                f"none of {report.found} images could be read; the first, {first[0]!r}: {first[1]}"
            )
        writer.finish()
        report.file_bytes = writer.file_bytes
        if source.class_names is not None:
            labels = source.labels[written & (source.labels >= 0)]
            report.per_class = np.bincount(labels, minlength=len(source.class_names)).tolist()
        options = {**asdict(encoding), "order": order, "seed": seed, "on_error": on_error}
        write_sidecar(out, _sidecar(source, report, options, writer.fingerprint) | (about or {}))
    return report


def numbers_in_order(source: Source, order: Literal["shuffled", "source"], seed: int) -> np.ndarray:
    """The source's images in the order in which they are written: int64 [N]."""
    num_images = len(source.labels)
    return file_order(num_images, seed) if order == "shuffled" else np.arange(num_images)


def file_order(num_images: int, seed: int) -> np.ndarray:
    """The source's images in the order of the file: int64 [N], a permutation, a function of its arguments."""
    high, low, _, _ = philox4x32((_ORDER_STREAM, 0, np.arange(num_images), 0), split_seed(seed))
    return np.argsort(high << np.uint64(32) | low, kind="stable")


def encode_all(
    source: Source, numbers: np.ndarray, encoding: Encoding, workers: int
) -> Generator[tuple[int, Stored | Exception]]:
    """Yield every image's number, and what is to be stored of it or why it cannot be, in the order of `numbers`."""
    memory = MemoryBudget(encoding.max_memory_mb << 20 or int(MEMORY_SHARE * available_memory()))

    def work(number: int) -> tuple[int, Stored | Exception]:
        try:
            return number, encode(source.read(number), encoding, memory)
        # whatever a decoder says of a corrupt file, the others go on
        except Exception as error:
            return number, error

    # enough images that handing them over costs nothing, few enough that their pixels stay below 50 MB
    size = min(32, max(1, (1 << 24) // encoding.max_side**2))
    chunks = (numbers[low : low + size].tolist() for low in range(0, len(numbers), size))
    Image.init()  # loads Pillow's formats; left to the threads, some would start before the others are done
    return map_in_order(work, chunks, workers)


def _leave_out(report: Report, item: str, error: Exception, on_error: str) -> None:
    if on_error == "stop":
        raise ValueError(f"{item!r}: {_reason(error)} (--on-error skip leaves such images out)") from error
    if item in report.skipped:  # a tar may hold a name more than once
        item = f"{item} ({len(report.skipped)})"
    report.skipped[item] = _reason(error)


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = " ".join(str(error).split())
    return text if isinstance(error, (ValueError, OSError)) and text else f"{type(error).__name__}: {text}"


def _add(writer: BetonWriter, stored: Stored, label: int) -> None:
    if isinstance(stored.image, bytes):
        writer.add_jpeg(stored.image, label)
    else:
        writer.add_raw(stored.image, label)


def _count(report: Report, item: Callable[[int], str], number: int, stored: Stored) -> None:
    if stored.kept:
        report.kept += 1
    elif stored.transcoded:
        report.transcoded += 1
    else:
        report.encoded += 1
    if stored.note:
        report.re_encoded.setdefault(stored.note, []).append(item(number))


def _sidecar(source: Source, report: Report, options: dict[str, Any], fingerprint: str) -> dict[str, Any]:
    """What the side-car says; nothing that changes from one run to the next."""
    packages = ("fastclr", "numpy", "simplejpeg", "pillow")
    return {
        "format": FORMAT,
        "file_bytes": report.file_bytes,
        "fingerprint": fingerprint,
        "source": {"kind": source.kind, "name": source.name},
        "class_names": source.class_names,
        "images_per_class": report.per_class,
        "counts": {
            "found": report.found,
            "written": report.written,
            "kept": report.kept,
            "transcoded": report.transcoded,
            "encoded": report.encoded,
            "skipped": len(report.skipped),
        },
        "options": options,
        "versions": {"python": platform.python_version()}
        | {name: package_version(name) or "not installed" for name in packages},
        "skipped": report.skipped,
        "re_encoded": report.re_encoded,
    }
