"""The resident engine on a GPU: the decoded set stays there, and only the drawn numbers of a batch are copied."""

from collections.abc import Generator, Iterator

import numpy as np
import torch

from pipelines.beton import BetonReader
from pipelines.contracts import BatchPlan, Crops, Planner
from pipelines.engines.corrupt import CorruptSamples
from pipelines.engines.resident.decoded import decode_set, decoded_bounds
from pipelines.ops.crop.gpu import crop_resize

MEMORY_SHARE = 0.5
"""Fraction of the GPU memory free at construction that the decoded set may take."""
PART_BYTES = 1 << 28
"""Approximate bytes of decoded images in the host's memory at a time."""


class ResidentGpuEngine:
    """Keeps the whole set, decoded once on the host, on a GPU, where one kernel crops the views of a group.

    A batch is cropped when it is requested, so nothing is prefetched here.  Corrupt samples are found when the set is
    decoded, and replaced as in the native engine.

    Args:
        reader: the file.
        planner: says which samples are in use.
        num_threads: threads that decode the set at construction.
        device: the CUDA device.
        augment: not used; the crops are augmented behind the engine, on the GPU.
        prefetch: not used.

    Raises:
        EngineUnavailable: Triton is missing.
        ValueError: the decoded set takes more than half of the GPU's memory.
    """

    def __init__(
        self,
        reader: BetonReader,
        planner: Planner,
        *,
        num_threads: int,
        device: torch.device | str,
        augment: bool | None = None,
        prefetch: int = 0,
    ) -> None:
        self.device = torch.device(device)
        free, _ = torch.cuda.mem_get_info(self.device)
        bounds = decoded_bounds(reader)
        if bounds[-1] > MEMORY_SHARE * free:
            raise ValueError(
                f"{reader.path}: decoded it takes {bounds[-1] / 2**30:.1f} GiB, more than half of the "
                f"{free / 2**30:.1f} GiB free on {self.device}; use engine native"
            )
        self.corrupt = CorruptSamples(reader.path, planner.num_samples)
        self.undecodable: dict[int, str] = {}
        """Corrupt samples of the set, with the reasons."""
        self._set = torch.empty(int(bounds[-1]), dtype=torch.uint8, device=self.device)
        self._offsets = torch.from_numpy(bounds[:-1]).to(self.device)
        self._widths = torch.from_numpy(reader.widths.astype(np.int32)).to(self.device)
        chosen = np.arange(len(reader)) if planner.subset is None else planner.subset
        # in parts, because otherwise every rank of a machine would need host memory for the whole set
        parts = np.flatnonzero(np.diff(bounds[chosen] // PART_BYTES)) + 1
        for part in np.split(chosen, parts):
            first, end = bounds[part[0]], bounds[part[-1] + 1]
            pixels = np.empty(end - first, np.uint8)
            self.undecodable |= decode_set(reader, part, pixels, bounds - first, num_threads)
            self._set[first:end].copy_(torch.from_numpy(pixels))

    def run(self, plans: Iterator[BatchPlan], planner: Planner) -> Generator[Crops]:
        for plan in plans:
            decodable = self._replace_corrupt(planner, plan)
            # freeing pinned tensors before the copy ends is safe: torch's pinned allocator waits for the copy
            indices, box, flip = (
                torch.from_numpy(np.ascontiguousarray(table)).pin_memory().to(self.device, non_blocking=True)
                for table in (decodable.indices, decodable.params.box, decodable.params.flip)
            )
            crops = tuple(
                crop_resize(
                    self._set,
                    indices,
                    box[group.views],
                    flip[group.views],
                    group.size,
                    offsets=self._offsets,
                    widths=self._widths,
                )
                for group in planner.groups
            )
            yield Crops(decodable, crops)

    def close(self) -> None:
        """Free the decoded set."""
        self._set = torch.empty(0, dtype=torch.uint8)

    def _replace_corrupt(self, planner: Planner, plan: BatchPlan) -> BatchPlan:
        if not self.undecodable:
            return plan
        rows = [row for row, index in enumerate(plan.indices.tolist()) if index in self.undecodable]
        plan = plan.copy()
        for row in rows:
            index = int(plan.indices[row])
            while index in self.undecodable:
                self.corrupt.add(index, self.undecodable[index])
                index = planner.replacement_for(index)
            plan.replace_row(row, index, planner.draw(plan.epoch, np.array([index])))
        return plan
