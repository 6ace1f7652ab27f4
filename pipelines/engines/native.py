"""The native engine: simplejpeg and numba in threads that hold no lock while they work.

A worker takes one image the whole way while it is in its cache:

    JPEG bytes ─decode─▶ pixels ─crop ×V─▶ uint8 crops ─(augment ×V)─▶ its rows of the batch
"""

from collections.abc import Generator, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from pipelines.augment import cpu
from pipelines.batch import BatchPlan, Crops
from pipelines.beton import BetonReader
from pipelines.engines.corrupt import CorruptSamples
from pipelines.engines.crop import crop_views, scratch_bytes
from pipelines.engines.pool import Job, WorkerPool
from pipelines.engines.recycle import RecycledMemory
from pipelines.order import Sampler


@dataclass(eq=False)
class Scratch:
    """What a worker thread keeps for itself."""

    image: np.ndarray
    """uint8, flat, as large as the file's largest image; pages never touched cost nothing."""
    crops: np.ndarray
    """uint8 [V, H, W, 3]."""
    crop: np.ndarray
    """Working memory of `crop_views`."""
    augment: cpu.Scratch
    """Working memory of `augment_sample`."""


class NativeEngine:
    """Decodes each image once, crops all its views, and on request augments them, in worker threads.

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
        self.corrupt = CorruptSamples(reader.path, sampler.num_samples)

    def run(self, plans: Iterator[BatchPlan]) -> Generator[Crops]:
        pool: WorkerPool
        spec = self.sampler.spec
        constants = cpu.constants(spec)

        def work(job: Job, low: int, high: int, scratch: Scratch) -> None:
            for row in range(low, high):
                image = self._decode(pool, job, row, scratch)
                params = job.plan.params
                crops = scratch.crops if self.augment else job.pixels[:, row]
                crop_views(image, params.box[:, row], params.flip[:, row], crops, scratch.crop)
                if self.augment:
                    cpu.augment_sample(
                        crops,
                        params.jitter,
                        params.order,
                        params.factors,
                        params.gray,
                        params.sigma,
                        row,
                        *constants,
                        job.pixels,
                        scratch.augment,
                    )

        def make_scratch() -> Scratch:
            heights, widths, size = self.reader.heights, self.reader.widths, spec.size
            return Scratch(
                image=np.empty(3 * int((heights.astype(np.int64) * widths).max()), np.uint8),
                crops=np.empty((spec.views, size, size, 3), np.uint8),
                crop=np.empty(scratch_bytes(heights.max(), widths.max(), size, size), np.uint8),
                augment=cpu.new_scratch(spec),
            )

        pool = WorkerPool(
            self._announced(plans), self._allocate, work, make_scratch, self.num_threads, self.prefetch
        )
        return pool.batches()

    def close(self) -> None:
        """Free the memory kept for the next batches."""
        self._memory.clear()

    def _allocate(self, plan: BatchPlan) -> np.ndarray:
        spec = self.sampler.spec
        shape = (spec.views, len(plan.indices), spec.size, spec.size, 3)
        if self.device.type == "cuda":
            dtype = torch.float32 if self.augment else torch.uint8
            return torch.empty(shape, dtype=dtype, pin_memory=True).numpy()
        return self._memory.take(shape, np.float32 if self.augment else np.uint8)

    def _announced(self, plans: Iterator[BatchPlan]) -> Iterator[BatchPlan]:
        """The same plans; the system hears of their samples when they are drawn, a batch or more before use."""
        for plan in plans:
            self.reader.will_need(plan.indices)
            yield plan

    def _pixels(self, index: int, buffer: np.ndarray) -> np.ndarray:
        """uint8 [h, w, 3]: the sample's pixels, in `buffer` or elsewhere.  ValueError: it is corrupt."""
        return self.reader.decode(index, buffer)

    def _decode(self, pool: WorkerPool, job: Job, row: int, scratch: Scratch) -> np.ndarray:
        """The pixels of the row's sample, or of the first sound sample after it."""
        index = int(job.plan.indices[row])
        while True:
            try:
                return self._pixels(index, scratch.image)
            except ValueError as error:
                self.corrupt.add(index, str(error))
            index = self.sampler.successor(index)
            pool.replace(job, row, index, self.sampler.draw(job.plan.epoch, np.array([index])))
