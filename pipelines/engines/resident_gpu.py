"""The resident engine on a GPU: the decoded set stays there, and a batch moves nothing but its numbers."""

from collections.abc import Generator, Iterator

import numpy as np
import torch

from pipelines.batch import BatchPlan, Crops
from pipelines.beton import BetonReader
from pipelines.engines.crop_gpu import crop_resize
from pipelines.engines.resident import ResidentEngine
from pipelines.order import Sampler

MEMORY_SHARE = 0.5
"""Share of the GPU memory free at construction that the decoded set may take."""


class ResidentGpuEngine:
    """The whole set decoded once on the host and kept on a GPU, where one kernel crops the views of a batch.

    Corrupt samples are found when the set is decoded, and replaced as in the native engine.

    Args:
        reader: the file.
        sampler: draws the numbers of a replacement, and gives the views' spec.
        num_threads: threads that decode the set at construction.
        device: the CUDA device.

    Raises:
        EngineUnavailable: Triton is missing.
        ValueError: the decoded set takes more than half of the memory of the host or of the GPU.
    """

    def __init__(
        self, reader: BetonReader, sampler: Sampler, num_threads: int, device: torch.device | str
    ) -> None:
        self.sampler, self.device = sampler, torch.device(device)
        free, _ = torch.cuda.mem_get_info(self.device)
        bytes_needed = int((3 * reader.heights.astype(np.int64) * reader.widths).sum())
        if bytes_needed > MEMORY_SHARE * free:
            raise ValueError(
                f"{reader.path}: decoded it takes {bytes_needed / 2**30:.1f} GiB, more than half of the "
                f"{free / 2**30:.1f} GiB free on {self.device}; use engine native"
            )
        host = ResidentEngine(reader, sampler, num_threads)
        self.broken, self.corrupt = host.broken, host.corrupt
        self._set = torch.from_numpy(host.pixels).to(self.device)
        self._offsets = torch.from_numpy(host.starts).to(self.device)
        self._widths = torch.from_numpy(reader.widths.astype(np.int32)).to(self.device)
        host.close()

    def run(self, plans: Iterator[BatchPlan]) -> Generator[Crops]:
        sampler = self.sampler  # of this iterator: the engine's may be another one before it ends
        for plan in plans:
            sound = self._replace_broken(sampler, plan)
            # views of pinned memory that outlive the copy: torch's pinned allocator waits for it
            indices, box, flip = (
                torch.from_numpy(np.ascontiguousarray(table)).pin_memory().to(self.device, non_blocking=True)
                for table in (sound.indices, sound.params.box, sound.params.flip)
            )
            crops = crop_resize(
                self._set,
                indices,
                box,
                flip,
                sampler.spec.size,
                offsets=self._offsets,
                widths=self._widths,
            )
            yield Crops(sound, crops)

    def close(self) -> None:
        """Free the decoded set."""
        self._set = torch.empty(0, dtype=torch.uint8)

    def _replace_broken(self, sampler: Sampler, plan: BatchPlan) -> BatchPlan:
        if not self.broken:
            return plan
        rows = [row for row, index in enumerate(plan.indices.tolist()) if index in self.broken]
        plan = plan.copy()
        for row in rows:
            index = int(plan.indices[row])
            while index in self.broken:
                self.corrupt.add(index, self.broken[index])
                index = sampler.successor(index)
            plan.put(row, index, sampler.draw(plan.epoch, np.array([index])))
        return plan
