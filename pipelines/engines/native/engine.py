"""The native engine: libjpeg-turbo and numba in threads that hold no lock while they work.

A worker takes an image, or as many small ones as take about as long, the whole way while they are in its cache:

    JPEG bytes ─decode─▶ pixels ─crop ×V─▶ uint8 crops ─(augment ×V)─▶ its rows of the batch

Each arrow is one call for all of them: what a thread does under Python's lock, all others wait for.
"""

import threading
import weakref
from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from pipelines.beton import BetonReader
from pipelines.contracts import BatchPlan, Crops
from pipelines.engines.corrupt import CorruptSamples
from pipelines.engines.native.buffers import RecycledMemory
from pipelines.engines.native.pool import Job, WorkerPool
from pipelines.engines.native.turbojpeg import Decoder, bind_turbojpeg, decode_samples
from pipelines.ops.augment import cpu
from pipelines.ops.crop.cpu import crop_rows, scratch_bytes
from pipelines.planner import Sampler
from pipelines.views import ViewSpec

CLAIM_PIXELS = 1 << 17
"""Pixels, decoded and cropped, that a worker takes at a time: about half a millisecond."""
SMALL = 64**2
"""Pixels of an image that takes a call from Python as long to decode as to get the lock back."""


def rows_per_claim(pixels: float) -> int:
    """Images that a worker takes at a time, of so many pixels each, decoded and cropped: 1 or more."""
    return max(1, int(CLAIM_PIXELS / pixels))


@dataclass(eq=False)
class Scratch:
    """What a worker thread keeps for itself."""

    images: np.ndarray
    """uint8, flat: decoded images, one after the other; pages never touched cost nothing."""
    starts: np.ndarray
    """int64 [rows]: where in `images` each begins."""
    crops: np.ndarray
    """uint8 [V, rows, H, W, 3]."""
    crop: np.ndarray
    """Working memory of `crop_rows`."""
    augment: cpu.Scratch
    """Working memory of `augment_rows`."""
    decoder: Decoder | None
    """libturbojpeg's, if this machine has it."""
    calling: AbstractContextManager
    """Held while simplejpeg is called."""


class NativeEngine:
    """Decodes each image once, crops all its views, and on request augments them, in worker threads.

    Decodes with the system's libturbojpeg where there is one, else with simplejpeg: the same pixels, but on
    small images, or with many threads, several times slower.

    A sample that cannot be decoded is replaced by its successor, with the successor's own draw, label and
    index, and named in a warning; after 100 of them the engine raises.

    Args:
        reader: the file.
        sampler: draws the numbers of a replacement, and gives the views' spec.
        num_threads: worker threads.
        device: where the crops are wanted: for a GPU they lie in page-locked memory and are left as uint8,
            for the CPU they are augmented in the workers.
        augment: overrides that: True for float32 normalised views, False for uint8 crops.
        prefetch: finished batches that may wait for the receiver.

    Raises:
        ValueError: from the iterator of `run`, when more than 100 samples are corrupt.
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
        self.reader, self.sampler, self.num_threads, self.prefetch = reader, sampler, num_threads, prefetch
        self.device = torch.device(device)
        self.augment = self.device.type == "cpu" if augment is None else augment
        self._memory = RecycledMemory(prefetch + 2)
        self._pools: weakref.WeakSet[WorkerPool] = weakref.WeakSet()
        self.corrupt = CorruptSamples(reader.path, sampler.num_samples)
        try:
            bind_turbojpeg()
            self.decodes_with = "libturbojpeg"
        except OSError:
            self.decodes_with = "simplejpeg"

    def run(self, plans: Iterator[BatchPlan]) -> Generator[Crops]:
        pool: WorkerPool
        # of this iterator: the engine's may be another one before it ends
        sampler = self.sampler
        spec, constants = sampler.spec, cpu.constants(sampler.spec)
        sizes = heights, widths = self.reader.heights, self.reader.widths
        areas = heights.astype(np.int64) * widths
        rows = rows_per_claim(areas.mean() + spec.num_views * spec.size**2)
        # simplejpeg on small images: threads that wait for each other's calls are slower than one at a time
        calling: AbstractContextManager = threading.Lock() if areas.mean() <= SMALL else nullcontext()

        def work(job: Job, low: int, high: int, scratch: Scratch) -> None:
            while low < high:
                images, starts = self._decode(job, low, high, scratch)
                if not len(starts):
                    images, starts = self._decode_or_replace(sampler, pool, job, low, scratch)
                stop = low + len(starts)
                plan, params = job.plan, job.plan.params
                into = (scratch.crops, 0) if self.augment else (job.pixels, low)
                boxes, flips = params.box, params.flip
                crop_rows(low, stop, plan.indices, *sizes, boxes, flips, images, starts, *into, scratch.crop)
                if self.augment:
                    numbers = cpu.numbers(params)
                    cpu.augment_rows(low, stop, *into, numbers, constants, job.pixels, scratch.augment)
                low = stop

        def make_scratch() -> Scratch:
            return Scratch(
                images=np.empty(3 * max(int(areas.max()), CLAIM_PIXELS), np.uint8),
                starts=np.empty(rows, np.int64),
                crops=np.empty((spec.num_views, rows, spec.size, spec.size, 3), np.uint8),
                crop=np.empty(scratch_bytes(heights.max(), widths.max(), spec.size, spec.size), np.uint8),
                augment=cpu.new_scratch(spec),
                decoder=Decoder() if self.decodes_with == "libturbojpeg" else None,
                calling=calling,
            )

        pool = WorkerPool(
            self._announced(plans),
            partial(self._allocate, spec),
            work,
            make_scratch,
            self.num_threads,
            self.prefetch,
            rows,
        )
        self._pools.add(pool)
        return pool.batches()

    def close(self) -> None:
        """End the threads of iterators that are still there, and free the memory kept for the next batches."""
        for pool in list(self._pools):
            pool.stop()
        self._memory.clear()

    def _allocate(self, spec: ViewSpec, plan: BatchPlan) -> np.ndarray:
        shape = (spec.num_views, len(plan.indices), spec.size, spec.size, 3)
        if self.device.type == "cuda":
            dtype = torch.float32 if self.augment else torch.uint8
            return torch.empty(shape, dtype=dtype, pin_memory=True).numpy()
        return self._memory.take(shape, np.float32 if self.augment else np.uint8)

    def _announced(self, plans: Iterator[BatchPlan]) -> Iterator[BatchPlan]:
        """The same plans; the system hears of their samples when they are drawn, a batch or more before use."""
        for plan in plans:
            self.reader.will_need(plan.indices)
            yield plan

    def _decode(self, job: Job, low: int, high: int, scratch: Scratch) -> tuple[np.ndarray, np.ndarray]:
        """The pixels of rows [low, …), and where the image of each begins; up to one that can't be decoded."""
        reader, indices, images, starts = self.reader, job.plan.indices, scratch.images, scratch.starts
        if scratch.decoder is not None:
            columns = reader.offsets, reader.sizes, reader.modes, reader.heights, reader.widths
            count = decode_samples(
                scratch.decoder.address, reader.data, *columns, indices, low, high, images, starts
            )
            return images, starts[:count]
        count, end = 0, 0
        with scratch.calling:
            for index in indices[low:high].tolist():
                try:
                    pixels = reader.decode(index, images[end:])
                except ValueError:  # corrupt; or no room for it, behind another
                    break
                starts[count] = end
                count, end = count + 1, end + pixels.size
        return images, starts[:count]

    def _decode_or_replace(
        self, sampler: Sampler, pool: WorkerPool, job: Job, row: int, scratch: Scratch
    ) -> tuple[np.ndarray, np.ndarray]:
        """As `_decode`, for one row: its sample or the first sound one after it, which then stands in its place."""
        index = int(job.plan.indices[row])
        starts = np.zeros(1, np.int64)
        while True:
            try:
                self.reader.decode(index, scratch.images)
                return scratch.images, starts
            except ValueError as error:
                self.corrupt.add(index, str(error))
            index = sampler.successor(index)
            pool.replace(job, row, index, sampler.draw(job.plan.epoch, np.array([index])))
