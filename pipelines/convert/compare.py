"""What keeping the JPEGs, or encoding them anew, would cost: tried on some samples before the conversion."""

import time
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Literal

import simplejpeg

from pipelines.convert.encode import Encoding, Stored, encode
from pipelines.convert.pillow import without_warnings
from pipelines.convert.run import encode_all, file_order
from pipelines.convert.sources import Source

COMPARED = 64
"""Samples that are encoded and decoded."""

_WAYS: tuple[Literal["keep", "recompress"], ...] = ("keep", "recompress")


@dataclass(frozen=True)
class Comparison:
    """One way to store the compared samples."""

    name: str
    mean_bytes: float
    """Per image."""
    images_per_s: float
    """Decoded by one thread."""


def compare(source: Source, encoding: Encoding, seed: int = 0, workers: int = 1) -> list[Comparison]:
    """What `keep` and `recompress` would cost: size and decoding speed of up to 64 random samples.

    Returns:
        One row for "keep" and one for "recompress"; none where no sample could be read.
    """
    keep, new = (replace(encoding, jpeg=way, mode="jpg", verify="full") for way in _WAYS)
    stored: dict[str, list[bytes]] = {way: [] for way in _WAYS}
    numbers = file_order(len(source.labels), seed)[:COMPARED]
    with without_warnings(), closing(encode_all(source, numbers, keep, workers)) as stream:
        for _, result in stream:
            if isinstance(result, Stored) and isinstance(result.image, bytes):
                stored["keep"].append(result.image)
                # what cannot be kept is stored in the same way either time
                again = encode(result.image, new).image if result.kept else result.image
                assert isinstance(again, bytes)
                stored["recompress"].append(again)
    if not stored["keep"]:
        return []
    rate = dict.fromkeys(stored, 0.0)
    for _ in range(3):  # in turns, the best of each: other programs disturb both alike
        for jpeg, images in stored.items():
            rate[jpeg] = max(rate[jpeg], _decode_rate(images))
    return [
        Comparison(jpeg, sum(map(len, images)) / len(images), rate[jpeg]) for jpeg, images in stored.items()
    ]


def _decode_rate(images: list[bytes], seconds: float = 0.05) -> float:
    """Images per second, over at least one pass and `seconds`."""
    count, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds or not count:
        for image in images:
            simplejpeg.decode_jpeg(image)
        count += len(images)
    return count / elapsed
