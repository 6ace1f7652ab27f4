"""Compares the ways to store JPEGs, in size and decoding speed, on some samples before the conversion."""

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np
import simplejpeg

from pipelines.convert.encode import Encoding, Stored, encode
from pipelines.convert.pillow import without_warnings
from pipelines.convert.protocol import Source, is_sequential
from pipelines.convert.run import encode_all, file_order
from pipelines.views import ViewSpec, draw_views

COMPARED = 64
"""Number of samples that are encoded."""
TIMED = 24
"""Number of these that are decoded, against the clock."""

_WAYS: tuple[Literal["keep", "lossless", "recompress"], ...] = ("keep", "lossless", "recompress")


@dataclass(frozen=True)
class Comparison:
    """One way to store the compared samples."""

    name: str
    mean_bytes: float
    """Per image."""
    images_per_s: float
    """Whole images that one thread decodes."""
    crops_per_s: float
    """Images of which one thread decodes only the part that SimCLR's two random crops need."""


def compare(source: Source, encoding: Encoding, seed: int = 0, workers: int = 1) -> list[Comparison]:
    """Return size and decoding speed for each choice of `--jpeg`, measured on up to 64 random samples.

    Returns:
        A row for each way; none where no sample could be read.
    """
    keep, *others = (replace(encoding, jpeg=way, mode="jpg", verify="full") for way in _WAYS)
    stored: dict[str, list[bytes]] = {way: [] for way in _WAYS}
    numbers = file_order(len(source.labels), seed)[:COMPARED]
    if is_sequential(source):  # a row group or a download for each sample would take minutes
        numbers = np.arange(len(numbers))
    with without_warnings(), closing(encode_all(source, numbers, keep, workers)) as stream:
        for _, result in stream:
            if isinstance(result, Stored) and isinstance(result.image, bytes):
                stored["keep"].append(result.image)
                for other in others:
                    # a sample that cannot be kept is stored in the same way by all choices
                    again = encode(result.image, other).image if result.kept else result.image
                    assert isinstance(again, bytes)
                    stored[other.jpeg].append(again)
    if not stored["keep"]:
        return []
    timed = {way: images[:TIMED] for way, images in stored.items()}
    tasks = {
        way: [partial(simplejpeg.decode_jpeg, image) for image in images] for way, images in timed.items()
    }
    crops = {way: [_decoding_of_crops(*each) for each in enumerate(images)] for way, images in timed.items()}
    rates, crop_rates = (dict.fromkeys(stored, 0.0) for _ in range(2))
    # interleaved, best of each: other programs disturb all variants alike
    for _ in range(3):
        for way in stored:
            rates[way] = max(rates[way], _rate(tasks[way]))
            crop_rates[way] = max(crop_rates[way], _rate(crops[way]))
    return [
        Comparison(way, sum(map(len, images)) / len(images), rates[way], crop_rates[way])
        for way, images in stored.items()
    ]


def _decoding_of_crops(index: int, image: bytes) -> Callable[[], object]:
    """Return a function that cuts and decodes the window of the crops drawn for image `index`."""
    from pipelines.jpeg.window import cut_window

    height, width = simplejpeg.decode_jpeg_header(image)[:2]
    box = draw_views(ViewSpec.simclr(), 0, 0, np.array([index]), np.array([height]), np.array([width])).box[
        :, 0
    ]
    (top, left), (bottom, right) = box[:, :2].min(0).tolist(), (box[:, :2] + box[:, 2:]).max(0).tolist()
    jpeg = np.frombuffer(image, np.uint8)
    return lambda: simplejpeg.decode_jpeg(cut_window(jpeg, top, left, bottom, right)[0])


def _rate(tasks: Sequence[Callable[[], object]], seconds: float = 0.02) -> float:
    """Return the calls per second, over at least one pass and `seconds`."""
    count, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds or not count:
        for task in tasks:
            task()
        count += len(tasks)
    return count / elapsed
