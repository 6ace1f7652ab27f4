"""Whether every image of a file can be decoded."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

from pipelines.beton.reader import BetonReader

CHUNK = 16
"""Images that a thread decodes at a time."""


def verify(reader: BetonReader, num_threads: int) -> Iterator[tuple[int, str]]:
    """Decode all images strictly; yield each index, in order, and what is wrong with the image: "" for nothing.

    A message begins with the file and the sample.  Loaders decode only the part of an image that they crop
    (docs/window-decoding.md), so damage elsewhere shows here alone.
    """
    chunks = iter(range(0, len(reader), CHUNK))

    def check(first: int) -> list[tuple[int, str]]:
        return [(index, _reason(reader, index)) for index in range(first, min(first + CHUNK, len(reader)))]

    with ThreadPoolExecutor(num_threads) as pool:
        # no more than some chunks ahead: an iterator that is dropped ends soon
        waiting = [pool.submit(check, first) for first in islice(chunks, 4 * num_threads)]
        while waiting:
            yield from waiting.pop(0).result()
            waiting += [pool.submit(check, first) for first in islice(chunks, 1)]


def _reason(reader: BetonReader, index: int) -> str:
    try:
        reader.decode(index)
    except ValueError as error:
        return str(error)
    return ""
