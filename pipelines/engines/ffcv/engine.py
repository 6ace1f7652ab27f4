"""The FFCV engine: the stock `ffcv.loader.Loader`, with our decode-once operation plugged in.

    plans ─▶ PlannedMemory ─▶ FFCV's thread ─▶ TwoViewDecoder in numba's threads ─▶ FFCV's memory ─copy─▶ Crops

FFCV asks its memory manager to make the data of a batch ready; at that moment ours takes the next plan.  So plans are
drawn one by one, just ahead of their use, although FFCV wants to know the length of an epoch beforehand.
"""

from collections import deque
from collections.abc import Generator, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numba
import numpy as np
import torch

from pipelines.beton import BetonReader
from pipelines.contracts import BatchPlan, Crops, Planner
from pipelines.engines.ffcv.one_file import reject_sets
from pipelines.engines.ffcv.patches import choose_threading_layer, thread_counts_kept
from pipelines.errors import EngineUnavailable
from pipelines.ops.crop.cpu import crop_resize, scratch_bytes
from pipelines.views import Group

if TYPE_CHECKING:
    from ffcv.loader import Loader

    from pipelines.engines.ffcv.decoder import Pick, TwoViewDecoder

__all__ = ["INSTALL", "FfcvEngine", "Pick", "TwoViewDecoder"]

INSTALL = "apt-get install g++ libturbojpeg0-dev libopencv-dev pkg-config && pip install 'fastclr[ffcv]'"
NO_SAMPLE = np.uint64(2**64 - 1)
"""Sample number that fills up an incomplete batch."""


def __getattr__(name: str) -> Any:
    # importing ffcv takes seconds, so it is done only when its operations are asked for
    if name in ("Pick", "TwoViewDecoder"):
        return getattr(_import_decoder(), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _import_decoder() -> Any:
    choose_threading_layer()
    try:
        with thread_counts_kept():
            from pipelines.engines.ffcv import decoder
        return decoder
    except (ImportError, OSError) as error:
        raise EngineUnavailable(f"the ffcv engine needs the package ffcv ({error}): {INSTALL}") from error


class FfcvEngine:
    """Decodes each image once and crops all its views in FFCV's threads, from FFCV's memory map of the file.

    FFCV compiles the operation for each new size of the views, some seconds before the first batch.

    Args:
        reader: the file.
        planner: not used before `run`.
        num_threads: FFCV's workers; no more than numba's limit (`NUMBA_NUM_THREADS`, the number of cores).
        device: device that the crops are meant for; for a GPU they lie in page-locked memory.
        augment: not used; the crops are augmented behind the engine.
        fast_dct: decode with the fast, less accurate inverse DCT that FFCV's own decoders use.
        prefetch: maximum number of finished batches that wait for the receiver; FFCV's memory holds two more.

    Raises:
        EngineUnavailable: the package ffcv is missing or broken; the message says what installs it.
        ValueError: a set of several files, which FFCV does not read.
        ValueError: raised by the iterator of `run` instead of yielding a batch with a corrupt sample, which it names.
        RuntimeError: raised by the iterator of `run` when FFCV's thread died.
    """

    def __init__(
        self,
        reader: BetonReader,
        planner: Planner,
        *,
        num_threads: int,
        device: torch.device | str = "cpu",
        augment: bool | None = None,
        fast_dct: bool = False,
        prefetch: int = 2,
    ) -> None:
        reject_sets(reader)
        self._ffcv = _import_decoder()
        self.reader, self.prefetch, self.fast_dct = reader, prefetch, fast_dct
        self.num_threads = min(num_threads, numba.config.NUMBA_NUM_THREADS)
        self.device = torch.device(device)
        self._idle: list[tuple[Loader, TwoViewDecoder]] = []
        """Compiled loaders that no run is using."""

    def run(self, plans: Iterator[BatchPlan], planner: Planner) -> Generator[Crops]:
        groups = planner.groups
        loader, decoder = self._take(planner)
        manager = loader.memory_manager
        planned = PlannedMemory(manager, plans, decoder)
        loader.memory_manager = planned
        try:
            # several passes, if there are more plans than an epoch has batches
            while not planned.exhausted:
                batches = self._ffcv.drive(loader)
                try:
                    with thread_counts_kept():
                        batch = next(batches, None)
                    while batch is not None:
                        yield self._crops(planned.underway.popleft(), batch, decoder, groups)
                        batch = next(batches, None)
                finally:
                    batches.close()
                if planned.error is not None:
                    raise planned.error
        finally:
            loader.memory_manager = manager
            self._idle.append((loader, decoder))

    def close(self) -> None:
        """Drop the compiled loaders."""
        self._idle.clear()

    def _crops(
        self,
        plan: BatchPlan,
        views: Sequence[np.ndarray],
        decoder: "TwoViewDecoder",
        groups: tuple[Group, ...],
    ) -> Crops:
        """Copy the pixels of a batch, because FFCV overwrites `views` with later batches."""
        num_rows, pin = len(plan.indices), self.device.type == "cuda"
        pixels = []
        for group in groups:
            shape = group.num_views, num_rows, group.size, group.size, 3
            crops = torch.empty(shape, dtype=torch.uint8, pin_memory=pin).numpy()
            for ours, theirs in zip(crops, views[group.views], strict=True):
                ours[...] = theirs[:num_rows]
            pixels.append(crops)
        for row in decoder.take_failed(plan.indices).tolist():
            self._crop_again(plan, row, groups, pixels)
        return Crops(plan, tuple(pixels))

    def _crop_again(
        self, plan: BatchPlan, row: int, groups: tuple[Group, ...], pixels: list[np.ndarray]
    ) -> None:
        """Crop a sample that libturbojpeg refused but the reader can decode (4:4:1 chroma, for example)."""
        try:
            image = self.reader.decode(int(plan.indices[row]), fast_dct=self.fast_dct)
        except ValueError as error:
            raise ValueError(f"{error}; engine ffcv replaces no sample, engine native does") from None
        for group, crops in zip(groups, pixels, strict=True):
            scratch = np.empty(scratch_bytes(*image.shape[:2], group.size, group.size), np.uint8)
            for view, out in enumerate(crops[:, row], group.views.start):
                box, flip = plan.params.box[view, row].tolist(), bool(plan.params.flip[view, row])
                crop_resize(image, *box, flip, out, scratch)

    def _take(self, planner: Planner) -> "tuple[Loader, TwoViewDecoder]":
        """Return a compiled loader for views of these sizes that no other run is using."""
        batch_size = planner.batch_size
        sizes = [group.size for group in planner.groups for _ in range(group.num_views)]
        for number, (loader, decoder) in enumerate(self._idle):
            if decoder.view_sizes.tolist() == sizes and loader.batch_size == batch_size:
                return self._idle.pop(number)
        decoder = self._ffcv.TwoViewDecoder(
            self.reader, views=planner.specs, epoch=None, fast_dct=self.fast_dct
        )
        with thread_counts_kept():
            loader = self._ffcv.make_loader(decoder, batch_size, self.num_threads, self.prefetch)
        # room for the longest epoch and one more batch, whose start reports the end of the plans
        order = np.empty((len(self.reader) // batch_size + 2) * batch_size, np.uint64)
        loader.first_traversal_order = order
        loader.traversal_order = PlannedOrder(order)
        return loader, decoder


class PlannedOrder:
    """FFCV's traversal order: an array whose rows `PlannedMemory` fills batch by batch."""

    def __init__(self, order: np.ndarray) -> None:
        self.order = order

    def sample_order(self, epoch: int) -> np.ndarray:
        return self.order


class PlannedMemory:
    """FFCV's memory manager for an epoch; its `start_batch` takes the next plan.

    FFCV makes all calls but the first in its own thread, which decodes a batch before it starts the next.
    """

    def __init__(self, manager: Any, plans: Iterator[BatchPlan], decoder: "TwoViewDecoder") -> None:
        self._manager, self._plans, self._decoder = manager, plans, decoder
        self.underway: deque[BatchPlan] = deque()
        """Plans whose batches are not yet handed out."""
        self.exhausted = False
        self.error: Exception | None = None

    def schedule_epoch(self, batches: list[np.ndarray]) -> "PlannedMemory":
        """Keep the slices of the traversal order, one per batch, which FFCV passes to the compiled code one by one."""
        self._batches = batches
        self._context = self._manager.schedule_epoch(batches)
        return self

    @property
    def state(self) -> Any:
        return self._context.state

    def __enter__(self) -> "PlannedMemory":
        self._context.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._context.__exit__(*error)

    def start_batch(self, number: int) -> None:
        """Take the next plan.  StopIteration, which ends FFCV's epoch: there is none, or drawing it failed."""
        try:
            plan = next(self._plans, None)
            if plan is not None:
                self._decoder.set_crops(plan.indices, plan.params)
                rows = self._batches[number]
                rows[: len(plan.indices)] = plan.indices
                rows[len(plan.indices) :] = NO_SAMPLE
                self.underway.append(plan)
        except Exception as error:
            self.error, plan = error, None
        if plan is None:
            self.exhausted = True
            raise StopIteration
        self._context.start_batch(number)
