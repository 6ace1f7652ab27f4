"""The resident engine on a GPU: the decoded set stays there, and a batch moves nothing but its numbers."""

from collections.abc import Generator, Iterator

import numpy as np
import torch

from pipelines.beton import BetonReader
from pipelines.contracts import BatchPlan, Crops
from pipelines.engines.corrupt import CorruptSamples
from pipelines.engines.resident.host import decode_set, decoded_bounds
from pipelines.ops.crop.gpu import crop_resize
from pipelines.planner import Sampler

MEMORY_SHARE = 0.5
"""Share of the GPU memory free at construction that the decoded set may take."""
PART_BYTES = 1 << 28
"""Decoded images that lie in the host's memory at a time, about."""


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
        ValueError: the decoded set takes more than half of the GPU's memory.
    """

    def __init__(
        self, reader: BetonReader, sampler: Sampler, num_threads: int, device: torch.device | str
    ) -> None:
        self.sampler, self.device = sampler, torch.device(device)
        free, _ = torch.cuda.mem_get_info(self.device)
        bounds = decoded_bounds(reader)
        if bounds[-1] > MEMORY_SHARE * free:
            raise ValueError(
                f"{reader.path}: decoded it takes {bounds[-1] / 2**30:.1f} GiB, more than half of the "
                f"{free / 2**30:.1f} GiB free on {self.device}; use engine native"
            )
        self.corrupt = CorruptSamples(reader.path, sampler.num_samples)
        self.broken: dict[int, str] = {}
        """Samples that could not be decoded, with the reason."""
        self._set = torch.empty(int(bounds[-1]), dtype=torch.uint8, device=self.device)
        self._offsets = torch.from_numpy(bounds[:-1]).to(self.device)
        self._widths = torch.from_numpy(reader.widths.astype(np.int32)).to(self.device)
        chosen = np.arange(len(reader)) if sampler.subset is None else sampler.subset
        # a part at a time: the ranks of a machine would need its memory once each for the whole set
        parts = np.flatnonzero(np.diff(bounds[chosen] // PART_BYTES)) + 1
        for part in np.split(chosen, parts):
            first, end = bounds[part[0]], bounds[part[-1] + 1]
            pixels = np.empty(end - first, np.uint8)
            self.broken |= decode_set(reader, part, pixels, bounds - first, num_threads)
            self._set[first:end].copy_(torch.from_numpy(pixels))

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
