"""Puts encoded images into the order of the file, where the source is read in another one."""

import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from pipelines.convert.encode import Stored

Result = tuple[int, Stored | Exception]
"""An image's number in the source, and what is stored of it, or why nothing is."""


def in_order(
    results: Iterable[Result], numbers: np.ndarray, folder: Path, stop: bool = False
) -> Iterator[Result]:
    """Yield results in the order of `numbers`, by way of a temporary file without a name.

    The file takes as many bytes as the images, and is gone with the process, also with one that is killed.

    Args:
        results: one per image, in any order.
        numbers: int [N], a permutation of the images' numbers in `results`.
        folder: where the temporary file lies.
        stop: yield an error, or a result with a warning, as soon as it comes.

    Raises:
        OSError: no space left; it names `folder`.
    """
    size = int(numbers.max()) + 1
    places = np.zeros((size, 2), np.int64)  # first byte and number of bytes
    shapes = np.zeros((size, 2), np.uint16)  # of pixels; 0 for a JPEG file
    flags = np.zeros(size, np.uint8)
    notes: dict[int, tuple[str, str]] = {}
    errors: dict[int, Exception] = {}
    end = 0
    try:
        with tempfile.TemporaryFile(dir=folder, prefix=".fastclr-") as file:
            for number, result in results:
                if stop and (isinstance(result, Exception) or result.warning):
                    yield number, result
                if isinstance(result, Exception):
                    errors[number] = result
                    continue
                data = result.image if isinstance(result.image, bytes) else result.image.tobytes()
                if not isinstance(result.image, bytes):
                    shapes[number] = result.image.shape[:2]
                places[number] = end, len(data)
                end += len(data)
                flags[number] = result.kept + 2 * result.transcoded
                if result.note or result.warning:
                    notes[number] = result.note, result.warning
                file.write(data)
            file.flush()
            descriptor = file.fileno()
            for number in numbers.tolist():
                if number in errors:
                    yield number, errors[number]
                    continue
                offset, length = places[number].tolist()
                data = os.pread(descriptor, length, offset)
                image = (
                    np.frombuffer(data, np.uint8).reshape(*shapes[number], 3) if shapes[number][0] else data
                )
                note, warning = notes.get(number, ("", ""))
                yield number, Stored(image, bool(flags[number] & 1), note, warning, bool(flags[number] & 2))
    except OSError as error:
        raise OSError(error.errno, error.strerror, error.filename or str(folder)) from None
