"""Contracts of the data plane: the data passed between planner, engines, augmentation and loader.

    planner ──BatchPlan──▶ engine ──Crops──▶ augmentation ──▶ Batch ──▶ receiver
                             └──────Views (augmented in its workers)──▶ Batch

Shape letters: V views per image, of which V_g belong to group g; B images of a batch; H_g and W_g the size of a
view of group g.  A group holds consecutive views of one size.
"""

from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from pipelines.views import Group, ViewParams, ViewSpec

Pixels = np.ndarray | torch.Tensor


@dataclass(frozen=True, eq=False)
class BatchPlan:
    """Everything that is known about a batch before a pixel is touched."""

    epoch: int
    step: int
    """Number of the batch within its epoch."""
    indices: np.ndarray
    """int64 [B]: sample numbers in the file."""
    params: ViewParams
    """The drawn numbers, arrays [V, B, …]."""

    def copy(self) -> "BatchPlan":
        """Return an equal plan on arrays of its own, whose rows may be replaced."""
        return replace(self, indices=self.indices.copy(), params=self.params.copy())

    def replace_row(self, row: int, index: int, params: ViewParams) -> None:
        """Replace the sample at `row` by sample `index` with its own numbers (arrays [V, 1, …])."""
        self.indices[row] = index
        self.params.replace_row(row, params)


class Crops(NamedTuple):
    """Pixels of a plan: cropped, resized and flipped, not yet augmented."""

    plan: BatchPlan
    """The plan of the pixels; for a corrupt sample it has the index and the numbers of the replacement."""
    pixels: tuple[Pixels, ...]
    """uint8 [V_g, B, H_g, W_g, 3] for each group, on the host or a GPU."""


class Views(NamedTuple):
    """Views of a plan, from an engine that augments in its workers."""

    plan: BatchPlan
    """The plan of the values, as in `Crops`."""
    values: tuple[Pixels, ...]
    """float32 [V_g, B, H_g, W_g, 3] for each group, normalised."""


class Planner(Protocol):
    """What an engine needs while it runs: the groups of views, and replacements for corrupt samples."""

    @property
    def specs(self) -> tuple[ViewSpec, ...]:
        """The distributions that the views are drawn from."""
        ...

    @property
    def groups(self) -> tuple[Group, ...]:
        """The groups of views, in the order of the views."""
        ...

    @property
    def batch_size(self) -> int:
        """Images of a full batch."""
        ...

    @property
    def num_samples(self) -> int:
        """Samples of an epoch."""
        ...

    @property
    def subset(self) -> np.ndarray | None:
        """int64, sorted: the samples in use; None means all of the file."""
        ...

    def replacement_for(self, index: int) -> int:
        """Return the sample that replaces a corrupt one."""
        ...

    def draw(self, epoch: int, indices: np.ndarray) -> ViewParams:
        """Draw the numbers of the views of these samples in this epoch."""
        ...


class Engine(Protocol):
    """Turns plans into crops, or into views.  Owns its threads and its prefetch, and no other state.

    Every engine is constructed as `(reader, planner, *, num_threads, device, augment, …)`.  The planner given there
    says which samples of the file are in use; with `augment=False` the workers must not augment.
    """

    def run(self, plans: Iterator[BatchPlan], planner: Planner) -> Generator[Crops | Views]:
        """Yield the pixels of the plans, in their order.

        Closing the iterator stops its threads and frees its memory.

        Args:
            plans: the batches to load.
            planner: the planner that made them; it tells the groups of their views.
        """
        ...

    def close(self) -> None:
        """Release the resources that the engine holds between runs."""
        ...


@dataclass(frozen=True, eq=False)
class Batch:
    """What a training step receives.  It belongs to the receiver; `views, labels = batch` unpacks it."""

    views: Any
    """Tensor [V, B, 3, H, W], each view channels-last, normalised; float32 on the CPU, half precision on a GPU.  A
    tuple of such tensors where the views come in several groups.  With `augment=False`: uint8 crops
    [V, B, H, W, 3]."""
    labels: torch.Tensor
    """int64 [B], −1 where unknown."""
    indices: torch.Tensor
    """int64 [B]: sample numbers in the file."""
    epoch: int
    step: int
    """Number of the batch within its epoch."""
    params: ViewParams | None = None
    """The drawn numbers, NumPy arrays [V, B, …] over the views of all groups."""

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Batch":
        """Return the batch with its tensors on a device.  The drawn numbers stay on the host."""

        def move(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.to(device, non_blocking=non_blocking)

        views = tuple(map(move, self.views)) if isinstance(self.views, tuple) else move(self.views)
        return replace(self, views=views, labels=move(self.labels), indices=move(self.indices))

    def __iter__(self) -> Iterator[Any]:
        return iter((self.views, self.labels))

    def __getitem__(self, position: int) -> Any:
        """Return the views for `batch[0]` and the labels for `batch[1]`."""
        return (self.views, self.labels)[position]

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)
