"""The resident engine: decodes the whole set into memory once, so that epochs only crop and augment."""

import itertools
from collections.abc import Iterator

import numpy as np
import torch

from pipelines.beton import BetonReader
from pipelines.contracts import BatchPlan, Planner
from pipelines.engines.native.engine import Decoded, NativeEngine, Scratch
from pipelines.engines.native.pool import Job
from pipelines.engines.resident.decoded import decode_set, decoded_bounds
from pipelines.system.memory import available_memory

MEMORY_SHARE = 0.5
"""Fraction of the memory available at construction that the decoded set may take."""


class ResidentEngine(NativeEngine):
    """The native engine over a decoded copy of the file in memory: for small sets (CIFAR, STL) and small images.

    Arguments and the replacement of corrupt samples are NativeEngine's.

    Raises:
        ValueError: the decoded set does not fit in half of the available memory.
    """

    _decodes_windows = False

    def __init__(
        self,
        reader: BetonReader,
        planner: Planner,
        *,
        num_threads: int,
        device: torch.device | str = "cpu",
        augment: bool | None = None,
        prefetch: int = 2,
    ) -> None:
        super().__init__(
            reader, planner, num_threads=num_threads, device=device, augment=augment, prefetch=prefetch
        )
        bounds = decoded_bounds(reader)
        available = available_memory()
        if bounds[-1] > MEMORY_SHARE * available:
            raise ValueError(
                f"{reader.path}: decoded it takes {bounds[-1] / 2**30:.1f} GiB, more than half of the "
                f"{available / 2**30:.1f} GiB of memory available; use engine native"
            )
        self.starts = bounds[:-1]
        """int64 [N]: first byte of each image in `pixels`."""
        self.pixels = np.empty(bounds[-1], np.uint8)
        """uint8: all images, one after the other."""
        chosen = np.arange(len(reader)) if planner.subset is None else planner.subset
        self.undecodable = decode_set(reader, chosen, self.pixels, bounds, num_threads)
        """Corrupt samples of the set, with the reasons."""

        self._whole = np.zeros((len(reader), 4), np.int32)
        """int32 [N, 4]: top, left, height, width of windows that cover whole images."""
        self._whole[:, 2], self._whole[:, 3] = reader.heights, reader.widths

    def close(self) -> None:
        """Free the decoded set, and the memory kept for later batches."""
        super().close()
        self.pixels = np.empty(0, np.uint8)

    def _with_readahead(self, plans: Iterator[BatchPlan]) -> Iterator[BatchPlan]:
        # the file is no longer read
        return plans

    def _decode(self, job: Job, low: int, high: int, scratch: Scratch) -> Decoded:
        indices = job.plan.indices[low:high]
        if self.undecodable:
            decoded = itertools.takewhile(lambda index: index not in self.undecodable, indices.tolist())
            indices = indices[: len(list(decoded))]
        return Decoded(self._whole, indices, self.pixels, self.starts[indices])
