"""The resident engine: the whole set decoded once, into memory; an epoch then only crops and augments."""

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from pipelines.beton import BetonReader
from pipelines.contracts import BatchPlan, Engine
from pipelines.engines.native.engine import NativeEngine, Scratch
from pipelines.engines.native.pool import Job
from pipelines.planner import Sampler
from pipelines.system.memory import available_memory
from pipelines.system.triton import why_no_triton

MEMORY_SHARE = 0.5
"""Share of the memory available at construction that the decoded set may take."""
IMAGES_PER_TASK = 256
"""Of a thread at construction: few enough for Ctrl-C to be heard soon."""


class ResidentEngine(NativeEngine):
    """The native engine over a decoded copy of the file in memory: for small sets (CIFAR, STL) and small images.

    Arguments and replacement of corrupt samples are NativeEngine's.

    Raises:
        ValueError: the decoded set does not fit in half of the available memory.
    """

    def __init__(
        self,
        reader: BetonReader,
        sampler: Sampler,
        num_threads: int,
        device: torch.device | str = "cpu",
        augment: bool | None = None,
        prefetch: int = 2,
    ) -> None:
        super().__init__(reader, sampler, num_threads, device, augment, prefetch)
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
        chosen = np.arange(len(reader)) if sampler.subset is None else sampler.subset
        self.broken = decode_set(reader, chosen, self.pixels, bounds, num_threads)
        """Samples that could not be decoded, with the reason."""

    def close(self) -> None:
        """Free the decoded set, and the memory kept for the next batches."""
        super().close()
        self.pixels = np.empty(0, np.uint8)

    def _announced(self, plans: Iterator[BatchPlan]) -> Iterator[BatchPlan]:
        return plans  # the file is not read any more

    def _decode(self, job: Job, low: int, high: int, scratch: Scratch) -> tuple[np.ndarray, np.ndarray]:
        indices = job.plan.indices[low:high]
        if self.broken:
            sound = itertools.takewhile(lambda index: index not in self.broken, indices.tolist())
            indices = indices[: len(list(sound))]
        return self.pixels, self.starts[indices]


def decoded_bounds(reader: BetonReader) -> np.ndarray:
    """int64 [N + 1]: where each image begins, and the last one ends, if all lie decoded one after the other."""
    return np.cumsum(np.append(0, 3 * reader.heights.astype(np.int64) * reader.widths))


def decode_set(
    reader: BetonReader, samples: np.ndarray, pixels: np.ndarray, bounds: np.ndarray, num_threads: int
) -> dict[int, str]:
    """Decode samples into `pixels`, each at its bounds; returns those that can't be, with the reason."""
    broken = {}

    def decode(some: np.ndarray) -> None:
        for index in some.tolist():
            try:
                reader.decode(index, pixels[bounds[index] : bounds[index + 1]])
            except ValueError as error:
                broken[index] = str(error)

    with ThreadPoolExecutor(num_threads) as threads:
        list(threads.map(decode, np.array_split(samples, -(-len(samples) // IMAGES_PER_TASK))))
    return broken


def resident(
    reader: BetonReader,
    sampler: Sampler,
    num_threads: int,
    device: torch.device | str = "cpu",
    augment: bool | None = None,
    prefetch: int = 2,
) -> Engine:
    """The set in the memory of the device that the views are wanted on; the host's, where Triton can't run.

    On a GPU a batch is cropped when it is asked for, so nothing is prefetched, and augmented by the stage behind.
    """
    if torch.device(device).type == "cpu" or why_no_triton():
        return ResidentEngine(reader, sampler, num_threads, device, augment, prefetch)
    from pipelines.engines.resident.gpu import ResidentGpuEngine  # needs Triton

    return ResidentGpuEngine(reader, sampler, num_threads, device)
