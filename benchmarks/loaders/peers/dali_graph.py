"""A DALI graph on the CPU that does everything with DALI's own operators, its random numbers included."""

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.loaders.peers.jpegs import open_jpegs
from pipelines.beton import Files
from pipelines.errors import EngineUnavailable


@dataclass
class DaliGraph:
    """Decoded once, cropped twice; what is drawn for a part of the images only is computed for that part."""

    name: str
    file: Files
    size: int
    augment: bool
    batch_size: int
    num_threads: int

    @property
    def lacks(self) -> str:
        return "random order of the jitter, exact hue" if self.augment else ""

    def open(self) -> "_Opened":
        try:
            from nvidia import dali
        except ImportError as error:
            raise EngineUnavailable(
                f"needs NVIDIA DALI ({error}): pip install 'fastclr[dali]' (CUDA 12) or 'fastclr[dali-cuda13]'"
            ) from error
        feed = _Feed(open_jpegs(self.file), self.batch_size)
        graph = dali.pipeline_def(_graph, enable_conditionals=True)(
            feed,
            self.size,
            self.augment,
            batch_size=self.batch_size,
            num_threads=self.num_threads,
            device_id=None,
            prefetch_queue_depth=2,
        )
        graph.build()
        return _Opened(feed, graph)

    def epoch(self, loader: "_Opened") -> Generator[int]:
        for _ in range(len(loader.feed.reader) // self.batch_size):
            try:
                outputs = loader.graph.run()
            except RuntimeError as error:  # which quotes the graph's source around what went wrong
                said = str(error).partition("encountered:")[2].strip() or str(error)
                raise RuntimeError(said.splitlines()[0]) from error
            # a copy, as a training step needs it: DALI uses its memory again
            first, second = (view.as_array().copy() for view in outputs[:2])
            assert first.shape == second.shape
            yield len(first)


@dataclass
class _Opened:
    feed: "_Feed"
    graph: Any


class _Feed:
    """The encoded images of a file in random order, from its memory map; endless: DALI reads ahead."""

    def __init__(self, reader: Any, batch_size: int) -> None:
        self.reader, self.batch_size, self.rng = reader, batch_size, np.random.default_rng()

    def __iter__(self) -> Iterator[tuple[list[np.ndarray], np.ndarray]]:
        while True:
            order = self.rng.permutation(len(self.reader))
            for first in range(0, len(order) - self.batch_size + 1, self.batch_size):
                rows = order[first : first + self.batch_size]
                yield [self.reader.image_bytes(row) for row in rows], self.reader.labels[rows]


def _graph(feed: _Feed, size: int, augment: bool) -> tuple[Any, ...]:
    """DALI rewrites this function: its `if`s on DALI's values become branches of the graph, per image."""
    from nvidia.dali import fn, types

    encoded, labels = fn.external_source(
        iter(feed), num_outputs=2, no_copy=True, dtype=[types.UINT8, types.INT64]
    )
    image = fn.decoders.image(encoded, device="cpu", output_type=types.RGB, adjust_orientation=False)
    views = []
    for _ in range(2):
        view = fn.random_resized_crop(
            image, size=size, random_area=[0.08, 1.0], random_aspect_ratio=[3 / 4, 4 / 3]
        )
        flip = fn.random.coin_flip(probability=0.5)
        views.append(_augmented(view, size, flip) if augment else fn.flip(view, horizontal=flip))
    return *views, labels


def _augmented(view: Any, size: int, flip: Any) -> Any:
    """Jitter, grayscale and blur with the paper's probabilities, then flip and normalisation in one."""
    from nvidia.dali import fn, types

    strength = 0.5 if size <= 32 else 1.0
    factors = [1 - 0.8 * strength, 1 + 0.8 * strength]
    if fn.random.coin_flip(probability=0.8, dtype=types.BOOL):
        view = fn.color_twist(
            view,
            brightness=fn.random.uniform(range=factors),
            contrast=fn.random.uniform(range=factors),
            saturation=fn.random.uniform(range=factors),
            hue=fn.random.uniform(range=[-72.0 * strength, 72.0 * strength]),
        )
    if fn.random.coin_flip(probability=0.2, dtype=types.BOOL):
        gray = fn.color_space_conversion(view, image_type=types.RGB, output_type=types.GRAY)
        view = fn.cat(gray, gray, gray, axis=2)
    if size > 32:  # noqa: SIM102  # decided once, in Python; the other condition is one of the graph
        if fn.random.coin_flip(probability=0.5, dtype=types.BOOL):
            sigma = fn.random.uniform(range=[0.1, 2.0])
            view = fn.gaussian_blur(view, sigma=sigma, window_size=(size // 10) // 2 * 2 + 1)
    return fn.crop_mirror_normalize(
        view,
        mirror=flip,
        mean=[255 * value for value in (0.485, 0.456, 0.406)],
        std=[255 * value for value in (0.229, 0.224, 0.225)],
        dtype=types.FLOAT,
        output_layout="HWC",
    )
