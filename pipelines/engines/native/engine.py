"""The native engine: libjpeg-turbo and numba in threads that do not hold the GIL while they work.

A worker takes an image, or as many small ones as take about as long, the whole way while they are in its cache:

    JPEG bytes ─decode─▶ pixels ─crop ×V─▶ uint8 crops ─(augment ×V)─▶ its rows of the batch

Decoding is one call for all of them, cropping and augmenting one call per group of views: what a thread does while it
holds the GIL, all others wait for.
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
from pipelines.contracts import BatchPlan, Crops, Planner, Views
from pipelines.engines.corrupt import CorruptSamples
from pipelines.engines.native.buffers import BufferPool
from pipelines.engines.native.pool import Job, WorkerPool
from pipelines.engines.native.turbojpeg import Decoder, bind_turbojpeg, decode_samples
from pipelines.ops.augment import cpu
from pipelines.ops.crop.cpu import crop_rows, scratch_bytes
from pipelines.views import Group, ViewParams

CLAIM_PIXELS = 1 << 17
"""Pixels, decoded and cropped, that a worker takes at a time: about half a millisecond."""
SMALL = 64**2
"""Mean image area (pixels) below which re-acquiring the GIL takes as long as decoding; simplejpeg calls are then
serialised."""


def rows_per_claim(pixels: float) -> int:
    """Return how many images of so many pixels each, decoded and cropped, a worker takes at a time: 1 or more."""
    return max(1, int(CLAIM_PIXELS / pixels))


@dataclass(eq=False)
class Scratch:
    """What a worker thread keeps for itself."""

    images: np.ndarray
    """uint8, flat: decoded images, one after the other; pages never touched cost nothing."""
    starts: np.ndarray
    """int64 [rows]: where in `images` each begins."""
    crops: list[np.ndarray]
    """uint8 [V_g, rows, H_g, W_g, 3] for each group."""
    crop: np.ndarray
    """Working memory of `crop_rows`."""
    augment: list[cpu.Scratch]
    """Working memory of `augment_rows` for each group."""
    decoder: Decoder | None
    """libturbojpeg's, if this machine has it."""
    decode_lock: AbstractContextManager
    """Held while simplejpeg is called."""


class NativeEngine:
    """Decodes each image once, crops all its views, and on request augments them, in worker threads.

    Decodes with the system's libturbojpeg where there is one, else with simplejpeg: the same pixels, but on
    small images, or with many threads, several times slower.

    A corrupt sample is replaced by its successor, with the successor's own draw, label and index, and named in a
    warning; after 100 of them the engine raises.

    Args:
        reader: the file.
        planner: says which samples are in use.
        num_threads: worker threads.
        device: where the crops are wanted: for a GPU they lie in page-locked memory.
        augment: True: yield Views, augmented in the workers; False: yield Crops; None: Views for the CPU, Crops for
            a GPU.
        prefetch: finished batches that may wait for the receiver.

    Raises:
        ValueError: from the iterator of `run`, when more than 100 samples are corrupt.
    """

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
        self.reader, self.num_threads, self.prefetch = reader, num_threads, prefetch
        self.device = torch.device(device)
        self.augment = self.device.type == "cpu" if augment is None else augment
        self._memory: dict[int, BufferPool] = {}
        self._pools: weakref.WeakSet[WorkerPool] = weakref.WeakSet()
        self.corrupt = CorruptSamples(reader.path, planner.num_samples)
        try:
            bind_turbojpeg()
            self.decodes_with = "libturbojpeg"
        except OSError:
            self.decodes_with = "simplejpeg"

    def run(self, plans: Iterator[BatchPlan], planner: Planner) -> Generator[Crops | Views]:
        pool: WorkerPool
        groups, augment = planner.groups, self.augment
        constants = [cpu.constants(group.specs[0]) for group in groups]
        sizes = self.reader.heights, self.reader.widths

        def tables_of(params: ViewParams) -> list[tuple[np.ndarray, np.ndarray, cpu.Drawn]]:
            # slicing all tables costs as much as a few small images
            parts = [params] if len(groups) == 1 else [params[group.views] for group in groups]
            return [(part.box, part.flip, cpu.numbers(part)) for part in parts]

        def work(job: Job, low: int, high: int, scratch: Scratch) -> None:
            while low < high:
                images, starts = self._decode(job, low, high, scratch)
                if not len(starts):
                    images, starts = self._decode_or_replace(planner, pool, job, low, scratch)
                stop = low + len(starts)
                indices, tables = job.plan.indices, job.per_group(tables_of)
                for number, ((box, flip, drawn), out) in enumerate(zip(tables, job.pixels, strict=True)):
                    into = (scratch.crops[number], 0) if augment else (out, low)
                    crop_rows(low, stop, indices, *sizes, box, flip, images, starts, *into, scratch.crop)
                    if augment:
                        cpu.augment_rows(
                            low, stop, *into, drawn, constants[number], out, scratch.augment[number]
                        )
                low = stop

        rows = self._rows_per_claim(groups)
        # simplejpeg on small images: threads that wait for each other's calls are slower than one at a time
        small = self._areas.mean() <= SMALL
        decode_lock: AbstractContextManager = threading.Lock() if small else nullcontext()
        pool = WorkerPool(
            self._with_readahead(plans),
            partial(self._allocate, groups),
            work,
            partial(self._make_scratch, groups, rows, decode_lock),
            self.num_threads,
            self.prefetch,
            rows,
            Views if augment else Crops,
        )
        self._pools.add(pool)
        return pool.batches()

    def close(self) -> None:
        """End the threads of iterators that are still there, and free the memory kept for the next batches."""
        for pool in list(self._pools):
            pool.stop()
        self._memory.clear()

    @property
    def _areas(self) -> np.ndarray:
        return self.reader.heights.astype(np.int64) * self.reader.widths

    def _rows_per_claim(self, groups: tuple[Group, ...]) -> int:
        return rows_per_claim(self._areas.mean() + sum(group.num_views * group.size**2 for group in groups))

    def _make_scratch(
        self, groups: tuple[Group, ...], rows: int, decode_lock: AbstractContextManager
    ) -> Scratch:
        max_height, max_width = self.reader.heights.max(), self.reader.widths.max()
        crop_bytes = max(scratch_bytes(max_height, max_width, group.size, group.size) for group in groups)
        return Scratch(
            images=np.empty(3 * max(int(self._areas.max()), CLAIM_PIXELS), np.uint8),
            starts=np.empty(rows, np.int64),
            crops=[
                np.empty((group.num_views, rows, group.size, group.size, 3), np.uint8) for group in groups
            ],
            crop=np.empty(crop_bytes, np.uint8),
            augment=[cpu.new_scratch(group.specs[0]) for group in groups],
            decoder=Decoder() if self.decodes_with == "libturbojpeg" else None,
            decode_lock=decode_lock,
        )

    def _allocate(self, groups: tuple[Group, ...], plan: BatchPlan) -> tuple[np.ndarray, ...]:
        return tuple(
            self._allocate_group(number, (group.num_views, len(plan.indices), group.size, group.size, 3))
            for number, group in enumerate(groups)
        )

    def _allocate_group(self, number: int, shape: tuple[int, ...]) -> np.ndarray:
        if self.device.type == "cuda":
            dtype = torch.float32 if self.augment else torch.uint8
            return torch.empty(shape, dtype=dtype, pin_memory=True).numpy()
        # one pool per group, since a pool keeps buffers of one size
        if number not in self._memory:
            self._memory.setdefault(number, BufferPool(self.prefetch + 2))
        return self._memory[number].acquire(shape, np.float32 if self.augment else np.uint8)

    def _with_readahead(self, plans: Iterator[BatchPlan]) -> Iterator[BatchPlan]:
        """Yield the plans, and tell the system their samples when they are drawn, a batch or more before use."""
        for plan in plans:
            self.reader.will_need(plan.indices)
            yield plan

    def _decode(self, job: Job, low: int, high: int, scratch: Scratch) -> tuple[np.ndarray, np.ndarray]:
        """Return the pixels of rows [low, …) up to one that can't be decoded, and where each image begins."""
        reader, indices, images, starts = self.reader, job.plan.indices, scratch.images, scratch.starts
        if scratch.decoder is not None:
            columns = reader.offsets, reader.sizes, reader.modes, reader.heights, reader.widths
            count = decode_samples(
                scratch.decoder.address, reader.data, *columns, indices, low, high, images, starts
            )
            return images, starts[:count]
        count, end = 0, 0
        with scratch.decode_lock:
            for index in indices[low:high].tolist():
                try:
                    pixels = reader.decode(index, images[end:])
                # corrupt; or no room for it behind the others
                except ValueError:
                    break
                starts[count] = end
                count, end = count + 1, end + pixels.size
        return images, starts[:count]

    def _decode_or_replace(
        self, planner: Planner, pool: WorkerPool, job: Job, row: int, scratch: Scratch
    ) -> tuple[np.ndarray, np.ndarray]:
        """Decode the sample of one row, or the first one after it that is not corrupt, which then replaces it."""
        index = int(job.plan.indices[row])
        starts = np.zeros(1, np.int64)
        while True:
            try:
                self.reader.decode(index, scratch.images)
                return scratch.images, starts
            except ValueError as error:
                self.corrupt.add(index, str(error))
            index = planner.replacement_for(index)
            pool.replace(job, row, index, planner.draw(job.plan.epoch, np.array([index])))
