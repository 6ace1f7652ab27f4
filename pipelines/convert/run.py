"""Runs a conversion: worker threads encode, one thread writes in order.

Threads suffice, because reading, decoding, resizing and encoding all release the GIL.  Unlike processes they start at
once and leave no orphans when the job is stopped or killed.
"""

import platform
from collections.abc import Callable, Generator, Iterator
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
from pipelines.convert.names_file import check_names_path, writing_names
from pipelines.convert.pillow import without_warnings
from pipelines.convert.protocol import Source, class_titles, is_sequential
from pipelines.convert.spool import in_order
from pipelines.convert.workers import map_in_order
from pipelines.system.memory import available_memory
from pipelines.system.terminal import one_line
from pipelines.system.versions import package_version
from pipelines.views.philox import philox4x32, split_seed

KEYS_AT_ONCE = 1 << 15
"""Images whose keys of the order are drawn together."""
_ORDER_STREAM = (1 << 31) + 2
"""First counter word of the keys of the file's order; the orders of epochs use other words."""
MEMORY_SHARE = 0.5
"""Fraction of the available memory that images may take while they are decoded."""


@dataclass
class Report:
    """Result of a conversion: what became of the source's images."""

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
    """Re-encoded although the user asked to keep files, or decoded leniently: reason → names."""
    file_bytes: int = 0
    per_class: list[int] | None = None
    """Number of images written, by class."""

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
    overwrite_names: bool = False,
    image_field: str = "image",
    label_field: str = "label",
    numbers: np.ndarray | None = None,
    about: dict[str, Any] | None = None,
) -> Report:
    """Write a source's images to a `.beton` file, its side-car and its file of names; each appears whole or not at all.

    The bytes depend on the source, the encoding, the order and the seed, not on the number of workers.

    Args:
        source: the images.
        out: the file to write; an older one is replaced.  A symbolic link is replaced itself, not its target.
        encoding: how images are stored; None for the defaults.
        order: "shuffled" mixes the classes all over the file, so that a loader which reads blocks of
            neighbours sees all of them; "source" keeps the source's order.
        seed: seed of the shuffle, in [0, 2⁶⁴).
        on_error: what to do with an image that cannot be read: "skip" leaves it out, "stop" raises.  An image that only
            a lenient decoder reads is stored by "skip"; "stop" raises for it, too.
        workers: number of threads.
        progress: called with the number of images encoded so far.
        image_field, label_field: names of the file's fields.
        overwrite_names: replace a file that has the name of the one with names (`train.names`) and is not ours.
        numbers: the images to write, in the order of the file; None: all of them, in `order`.
        about: further keys of the side-car.

    Raises:
        ValueError: an image is corrupt and `on_error` is "stop", or no image could be read.
        OSError: `out` cannot be written, another process is writing it, there is no space left, or the path of its
            side-car or of its file of names is taken by another file.
    """
    encoding = encoding or Encoding()
    check_sidecar_path(out)
    if not overwrite_names:
        check_names_path(out)
    if numbers is None:
        numbers = numbers_in_order(source, order, seed)
    report = Report(found=len(numbers))
    written = np.zeros(len(source.labels), bool)
    with (
        BetonWriter(out, report.found, encoding.max_side, image_field, label_field) as writer,
        writing_names(out) as names,
    ):
        stop = on_error == "stop"
        results = _results(source, numbers, encoding, workers, out.parent, stop, progress)
        with without_warnings(), closing(results) as stream:
            for number, result in stream:
                if isinstance(result, Stored) and result.warning and on_error == "stop":
                    result = ValueError(result.warning)
                if isinstance(result, Exception):
                    _leave_out(report, source.item(number), result, on_error)
                else:
                    _add(writer, result, int(source.labels[number]))
                    written[number] = True
                    name = source.item(number)
                    names.add(name)
                    _count(report, name, result)
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
        content = _sidecar(source, report, options, writer.fingerprint) | (about or {})
        write_sidecar(out, content | {"names": names.finish()})
    return report


def numbers_in_order(source: Source, order: Literal["shuffled", "source"], seed: int) -> np.ndarray:
    """The source's images in the order in which they are written: int64 [N]."""
    num_images = len(source.labels)
    return file_order(num_images, seed) if order == "shuffled" else np.arange(num_images)


def file_order(num_images: int, seed: int) -> np.ndarray:
    """Return the source's images in the order of the file: int64 [N], a permutation that depends on the seed alone."""
    keys = np.empty(num_images, np.uint64)
    # piece by piece: the rounds of Philox on all at once would take ten times the memory of the keys
    for first in range(0, num_images, KEYS_AT_ONCE):
        numbers = np.arange(first, min(first + KEYS_AT_ONCE, num_images))
        high, low, _, _ = philox4x32((_ORDER_STREAM, 0, numbers, 0), split_seed(seed))
        keys[numbers] = high << np.uint64(32) | low
    return np.argsort(keys, kind="stable")


def encode_all(
    source: Source, numbers: np.ndarray, encoding: Encoding, workers: int
) -> Generator[tuple[int, Stored | Exception]]:
    """Yield the number of each image, and what to store or why it can't be stored, in the order of `numbers`."""
    memory = MemoryBudget(encoding.max_memory_mb << 20 or int(MEMORY_SHARE * available_memory()))

    def work(number: int) -> tuple[int, Stored | Exception]:
        try:
            return number, encode(source.read(number), encoding, memory)
        # one corrupt file must not stop the others, whatever its decoder raises
        except Exception as error:
            return number, error

    # enough images that the hand-over costs nothing, few enough that their pixels stay below 50 MB
    size = min(32, max(1, (1 << 24) // encoding.max_side**2))
    chunks = (numbers[low : low + size].tolist() for low in range(0, len(numbers), size))
    # load Pillow's formats before the threads start: a thread could use them half loaded
    Image.init()
    return map_in_order(work, chunks, workers)


def _results(
    source: Source,
    numbers: np.ndarray,
    encoding: Encoding,
    workers: int,
    folder: Path,
    stop: bool,
    progress: Callable[[int], None],
) -> Generator[tuple[int, Stored | Exception]]:
    """Yield what `encode_all` does in the order of `numbers`, reading a sequential source in its own order."""
    sorted_numbers = np.sort(numbers) if is_sequential(source) else numbers
    with closing(encode_all(source, sorted_numbers, encoding, workers)) as encoded:

        def counted() -> Iterator[tuple[int, Stored | Exception]]:
            for done, result in enumerate(encoded, 1):
                yield result
                progress(done)

        in_place = np.array_equal(sorted_numbers, numbers)
        yield from counted() if in_place else in_order(counted(), numbers, folder, stop)


def _leave_out(report: Report, item: str, error: Exception, on_error: str) -> None:
    if on_error == "stop":
        raise ValueError(f"{item!r}: {_reason(error)} (--on-error skip leaves such images out)") from error
    if item in report.skipped:  # a tar may hold a name more than once
        item = f"{item} ({len(report.skipped)})"
    report.skipped[item] = _reason(error)


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = one_line(error)
    return text if isinstance(error, (ValueError, OSError)) and text else f"{type(error).__name__}: {text}"


def _add(writer: BetonWriter, stored: Stored, label: int) -> None:
    if isinstance(stored.image, bytes):
        writer.add_jpeg(stored.image, label)
    else:
        writer.add_raw(stored.image, label)


def _count(report: Report, name: str, stored: Stored) -> None:
    if stored.kept:
        report.kept += 1
    elif stored.transcoded:
        report.transcoded += 1
    else:
        report.encoded += 1
    if stored.note:
        report.re_encoded.setdefault(stored.note, []).append(name)


def _sidecar(source: Source, report: Report, options: dict[str, Any], fingerprint: str) -> dict[str, Any]:
    """Return the content of the side-car, which is the same for every run with the same arguments."""
    packages = ("fastclr", "numpy", "simplejpeg", "pillow")
    return {
        "format": FORMAT,
        "file_bytes": report.file_bytes,
        "fingerprint": fingerprint,
        "source": {"kind": source.kind, "name": source.name},
        "class_names": source.class_names,
        **({"class_titles": titles} if (titles := class_titles(source)) is not None else {}),
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
