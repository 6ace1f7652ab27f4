"""The contracts of the data plane: what travels between order, engines, augmentation and loader.

    order + draw ──BatchPlan──▶ engine ──Crops──▶ augmentation ──Batch──▶ receiver

Shape letters: V views per image, B images of a batch, H and W the size of a view.
"""

from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
import torch

from pipelines.views import ViewParams

if TYPE_CHECKING:
    from pipelines.planner import Sampler


@dataclass(frozen=True, eq=False)
class BatchPlan:
    """Everything there is to know about a batch before a pixel is touched."""

    epoch: int
    step: int
    """Number of the batch within its epoch."""
    indices: np.ndarray
    """int64 [B]: sample numbers in the file."""
    params: ViewParams
    """The drawn numbers, arrays [V, B, …]."""

    def copy(self) -> "BatchPlan":
        """The same plan on its own arrays, free to `put` into."""
        return replace(self, indices=self.indices.copy(), params=self.params.copy())

    def put(self, row: int, index: int, params: ViewParams) -> None:
        """Let sample `index`, with its own numbers (arrays [V, 1, …]), stand at `row`."""
        self.indices[row] = index
        self.params.replace_row(row, params)


class Crops(NamedTuple):
    """The pixels of a plan, cropped, resized and flipped."""

    plan: BatchPlan
    """The plan they belong to; where samples were replaced, with the replacements' indices and numbers."""
    pixels: np.ndarray | torch.Tensor
    """uint8 [V, B, H, W, 3], on the host or a GPU; or, from an engine that was asked to augment in its
    workers, float32 normalised views of the same shape."""


class Engine(Protocol):
    """Turns plans into crops.  Owns its threads and its prefetch, and no other state."""

    sampler: "Sampler"
    """Gives the views' spec, and the numbers of a replacement; the loader may exchange it between runs."""

    def run(self, plans: Iterator[BatchPlan]) -> Generator[Crops]:
        """Crops in the order of the plans.  Closing the iterator stops its threads and frees its memory."""
        ...

    def close(self) -> None:
        """Release what the engine holds between runs."""
        ...


@dataclass(frozen=True, eq=False)
class Batch:
    """What a training step receives.  It belongs to the receiver; `views, labels = batch` unpacks it."""

    views: torch.Tensor
    """[V, B, 3, H, W], each view channels-last; float32 on the CPU, half precision on a GPU; normalised."""
    labels: torch.Tensor
    """int64 [B], −1 where unknown."""
    indices: torch.Tensor
    """int64 [B]: sample numbers in the file."""
    epoch: int
    step: int

    def __iter__(self) -> Iterator[torch.Tensor]:
        return iter((self.views, self.labels))

    def __len__(self) -> int:
        return len(self.labels)
