"""The native engine: libjpeg-turbo and numba run in threads that release the GIL.

A worker claims one image, or several small images that take about as long, and runs all stages while they are in its
cache:

    JPEG bytes ─(cut)─ decode─▶ pixels ─crop ×V─▶ uint8 crops ─(augment ×V)─▶ its rows of the batch

If a JPEG has restart markers, the worker cuts out and decodes only the window that contains all crops
(`pipelines.jpeg.window`).

A worker decodes all images of a claim in one call, and crops and augments them in one call per group of views.  The
number of calls must be small, because all other threads wait while one thread holds the GIL.
"""

import threading
import weakref
from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import simplejpeg
import torch

from pipelines.beton import BetonReader
from pipelines.contracts import BatchPlan, Crops, Planner, Views
from pipelines.engines.corrupt import CorruptSamples
from pipelines.engines.native.buffers import BufferPool
from pipelines.engines.native.pool import Job, WorkerPool
from pipelines.engines.native.turbojpeg import (
    Decoder,
    bind_turbojpeg,
    cached_start,
    decode_samples,
    decode_windows,
)
from pipelines.jpeg.probe import finds_restarts
from pipelines.jpeg.window import cut_samples
from pipelines.ops.augment import cpu
from pipelines.ops.crop.cpu import crop_rows, scratch_bytes
from pipelines.views import Group, ViewParams

CLAIM_PIXELS = 1 << 17
"""Number of pixels (decoded plus cropped) that a worker claims at a time: about half a millisecond of work."""
SMALL = 64**2
"""Mean image area (pixels) below which re-acquiring the GIL takes as long as decoding; simplejpeg calls are then
serialised."""


def rows_per_claim(pixels: float) -> int:
    """Return how many images a worker claims at a time, at least 1.

    Args:
        pixels: pixels per image: the decoded pixels plus those of the crops.
    """
    return max(1, int(CLAIM_PIXELS / pixels))


@dataclass(eq=False)
class Scratch:
    """Working memory and decoder of one worker thread."""

    images: np.ndarray
    """uint8, flat: decoded images, one after the other; pages that are never touched take no memory."""
    starts: np.ndarray
    """int64 [rows]: position of each image in `images`."""
    windows: np.ndarray
    """int32 [rows, 4]: top, left, height, width of the part of each image that is decoded."""
    places: np.ndarray
    """int64 [rows, 3]: position of each window's JPEG; see `places` of `cut_samples`."""
    rows: np.ndarray
    """int64 [rows]: 0, 1, …"""
    cut: np.ndarray
    """uint8, flat: JPEGs of windows, one after the other."""
    crops: list[np.ndarray]
    """uint8 [V_g, rows, H_g, W_g, 3] for each group."""
    crop: np.ndarray
    """Working memory of `crop_rows`."""
    augment: list[cpu.Scratch]
    """Working memory of `augment_rows` for each group."""
    decoder: Decoder | None
    """Decoder of libturbojpeg; None if this machine does not have the library."""
    decode_lock: AbstractContextManager
    """Lock that a worker holds while it calls simplejpeg."""


class Decoded(NamedTuple):
    """Decoded images of some rows of a batch, in the form that `crop_rows` takes."""

    windows: np.ndarray
    """int32 [N, 4]: top, left, height, width of the part of an image that is decoded."""
    places: np.ndarray
    """int64 [rows]: row of `windows` for each image."""
    pixels: np.ndarray
    """uint8, flat: pixels of the windows."""
    starts: np.ndarray
    """int64 [rows]: position of each window in `pixels`."""


class NativeEngine:
    """Engine that decodes each image once, crops all its views and, on request, augments them in worker threads.

    It decodes with the system's libturbojpeg if there is one, otherwise with simplejpeg, which gives the same pixels
    but is several times slower on small images or with many threads.

    A corrupt sample is replaced by the next sample, with that sample's own draw, label and index.  A warning names the
    corrupt sample.  After 100 corrupt samples the engine raises an error.

    Args:
        reader: the file.
        planner: determines which samples are in use.
        num_threads: worker threads.
        device: device on which the crops will be used; for a GPU they are stored in page-locked memory.
        augment: True: yield Views, augmented in the workers; False: yield Crops; None: Views for the CPU, Crops for
            a GPU.
        prefetch: maximum number of finished batches that wait for the receiver.

    Raises:
        ValueError: more than 100 samples are corrupt; raised by the iterator that `run` returns.
    """

    _decodes_windows = True
    """Whether the engine can decode only the window of a JPEG that it needs."""

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
        self.cuts_windows = self._decodes_windows and finds_restarts(reader)
        """Whether windows are cut from the file's JPEGs."""
        try:
            bind_turbojpeg()
            self.decodes_with = "libturbojpeg"
        except OSError:
            self.decodes_with = "simplejpeg"

    def run(self, plans: Iterator[BatchPlan], planner: Planner) -> Generator[Crops | Views]:
        pool: WorkerPool
        groups, augment = planner.groups, self.augment
        constants = [cpu.constants(group.specs[0]) for group in groups]

        def tables_of(params: ViewParams) -> list[tuple[np.ndarray, np.ndarray, cpu.Drawn]]:
            # slicing all tables takes as long as processing a few small images
            parts = [params] if len(groups) == 1 else [params[group.views] for group in groups]
            return [(part.box, part.flip, cpu.numbers(part)) for part in parts]

        def work(job: Job, low: int, high: int, scratch: Scratch) -> None:
            while low < high:
                decoded = self._decode(job, low, high, scratch)
                if not len(decoded.starts):
                    decoded = self._decode_or_replace(planner, pool, job, low, scratch)
                stop = low + len(decoded.starts)
                where, what = decoded[:2], decoded[2:]
                tables = job.per_group(tables_of)
                for number, ((box, flip, drawn), out) in enumerate(zip(tables, job.pixels, strict=True)):
                    into = (scratch.crops[number], 0) if augment else (out, low)
                    crop_rows(low, stop, *where, box, flip, *what, *into, scratch.crop)
                    if augment:
                        cpu.augment_rows(
                            low, stop, *into, drawn, constants[number], out, scratch.augment[number]
                        )
                low = stop

        rows = self._rows_per_claim(groups)
        # with simplejpeg and small images, threads that compete for the GIL are slower than one thread at a time
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
        """End the threads of iterators that are still open, and free the memory kept for later batches."""
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
            images=np.empty(3 * max(int(self._areas.max()), CLAIM_PIXELS) + 32, np.uint8),
            starts=np.empty(rows, np.int64),
            windows=np.empty((rows, 4), np.int32),
            places=np.empty((rows, 3), np.int64),
            rows=np.arange(rows),
            cut=np.empty(self._cut_bytes(rows), np.uint8),
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
        """Yield the plans; ask the system to read the samples of each plan, at least one batch before they are used."""
        for plan in plans:
            self.reader.will_need(plan.indices)
            yield plan

    def _cut_bytes(self, rows: int) -> int:
        """Return the size of `Scratch.cut` in bytes; an image whose window does not fit into it is decoded whole."""
        sizes = self.reader.sizes
        return int(sizes.max() + 2 * rows * sizes.mean()) if self.cuts_windows else 0

    def _decode(self, job: Job, low: int, high: int, scratch: Scratch) -> Decoded:
        """Decode rows [low, high), up to the first one that can't be decoded."""
        reader, indices = self.reader, job.plan.indices
        columns = reader.offsets, reader.sizes, reader.modes, reader.heights, reader.widths
        images, starts = scratch.images, scratch.starts
        if self.cuts_windows:
            windows, places, cut = scratch.windows, scratch.places, scratch.cut
            cut_samples(low, high, reader.data, *columns, indices, job.plan.params.box, cut, places, windows)
            count = self._decode_windows(indices, low, high, scratch)
            return Decoded(windows, scratch.rows, images, starts[:count])
        if scratch.decoder is not None:
            count = decode_samples(
                scratch.decoder.address, reader.data, *columns, indices, low, high, images, starts
            )
        else:
            count = self._decode_by_simplejpeg(indices[low:high], scratch)
        rows = indices[low : low + count]
        windows = scratch.windows[:count]
        windows[:, :2], windows[:, 2], windows[:, 3] = 0, reader.heights[rows], reader.widths[rows]
        return Decoded(windows, scratch.rows, images, starts[:count])

    def _decode_windows(self, indices: np.ndarray, low: int, high: int, scratch: Scratch) -> int:
        """Decode the windows that `cut_samples` chose; return the number of rows before the first failure."""
        where = scratch.cut, scratch.places, scratch.windows
        if scratch.decoder is None:
            return self._decode_by_simplejpeg(indices[low:high], scratch, scratch.places)
        reader = self.reader
        address, data, modes = scratch.decoder.address, reader.data, reader.modes
        return decode_windows(
            address, data, modes, indices, low, high, *where, scratch.images, scratch.starts
        )

    def _decode_by_simplejpeg(
        self, indices: np.ndarray, scratch: Scratch, places: np.ndarray | None = None
    ) -> int:
        """Decode samples or their windows; return the number of samples before the first failure."""
        count, end = 0, 0
        with scratch.decode_lock:
            for index in indices.tolist():
                start = cached_start(scratch.images, end)
                room = scratch.images[start:]
                try:
                    if places is not None and places[count, 0]:
                        first, size = places[count, 1:].tolist()
                        pixels = simplejpeg.decode_jpeg(scratch.cut[first : first + size], buffer=room)
                    else:
                        pixels = self.reader.decode(index, room)
                # the sample is corrupt, or it does not fit behind the others
                except ValueError:
                    break
                scratch.starts[count] = start
                count, end = count + 1, start + pixels.size
        return count

    def _decode_or_replace(
        self, planner: Planner, pool: WorkerPool, job: Job, row: int, scratch: Scratch
    ) -> Decoded:
        """Decode the whole image of one row; if it is corrupt, replace it by the next sample that is not corrupt."""
        index = int(job.plan.indices[row])
        while True:
            try:
                self.reader.decode(index, scratch.images)
                whole = np.array([[0, 0, self.reader.heights[index], self.reader.widths[index]]], np.int32)
                return Decoded(whole, scratch.rows, scratch.images, np.zeros(1, np.int64))
            except ValueError as error:
                self.corrupt.add(index, str(error))
            index = planner.replacement_for(index)
            pool.replace(job, row, index, planner.draw(job.plan.epoch, np.array([index])))
