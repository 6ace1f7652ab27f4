"""BatchPlanner: the order of an epoch, split into plans: which rank sees which samples in which batch.

Order and split are pure functions of (seed, epoch, world size, position).  As there is no state, a run that is resumed
in mid-epoch, or on another number of ranks, sees the same batches as one that was never stopped.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import islice
from typing import Literal, get_args

import numpy as np

from pipelines.contracts import BatchPlan
from pipelines.views import Group, ViewParams, ViewSpec, draw_views, groups_of
from pipelines.views.philox import philox4x32, split_seed

Order = Literal["random", "sequential", "blocks"]
ORDERS: tuple[Order, ...] = get_args(Order)

BLOCK_SAMPLES = 64
"""Block size of the order "blocks", in consecutive samples: about one page of ImageNet photos."""
MIXED_BLOCKS = 128
"""Number of blocks whose samples are shuffled together: a window of 8192 samples."""

_SAMPLE_STREAM, _BLOCK_STREAM = 1 << 31, (1 << 31) + 1
"""First counter word of the order's keys; the draws of views use the words 0…12."""
PIECE = 1 << 18
"""Samples of an order that are sorted at a time; what it takes to find them among the keys is a fraction of that."""
KEYS_AT_ONCE = 1 << 15
"""Samples whose keys are drawn together: their temporary arrays stay in a core's cache."""
DRAWN_AT_ONCE = 1024
"""Samples whose numbers are drawn together."""


def epoch_order(num_samples: int, seed: int, epoch: int, order: Order = "random") -> np.ndarray:
    """Return the positions 0…N−1 in the order of an epoch.

    "random" is a stable argsort of 64-bit Philox keys (a library's `permutation` may change between
    versions).  "blocks" shuffles blocks of 64 consecutive samples and then the samples within every 128
    blocks, so that a file larger than memory is read in runs of pages.  "sequential" is the file's order.

    Returns:
        int64 [N], a permutation.

    Raises:
        ValueError: an unknown order.
    """
    return np.concatenate([np.empty(0, np.int64), *order_pieces(num_samples, seed, epoch, order)])


def order_pieces(
    num_samples: int, seed: int, epoch: int, order: Order = "random", start: int = 0
) -> Iterator[np.ndarray]:
    """Yield `epoch_order(…)[start:]` in pieces, each computed when it is asked for.

    The first batch of a large set therefore waits for one piece, and not for the whole permutation.

    Raises:
        ValueError: an unknown order.
    """
    if order not in _PIECES:
        raise ValueError(f"order must be one of {', '.join(ORDERS)}, got {order!r}")
    position = 0
    for count, piece in _PIECES[order](num_samples, seed, epoch):
        if position + count > start:
            yield piece()[max(start - position, 0) :]
        position += count


_Piece = tuple[int, Callable[[], np.ndarray]]
"""Number of positions in a piece of an order, and a function that returns them."""


def _sequential(num_samples: int, seed: int, epoch: int) -> Iterator[_Piece]:
    for first in range(0, num_samples, PIECE):
        end = min(first + PIECE, num_samples)
        yield end - first, partial(np.arange, first, end, dtype=np.int64)


def _random(num_samples: int, seed: int, epoch: int) -> Iterator[_Piece]:
    """Split the keys by their value into ranges of equal width, and sort range by range."""
    keys = _keys(0, num_samples, seed, epoch, _SAMPLE_STREAM)

    def sort(chosen: np.ndarray) -> np.ndarray:
        return chosen[np.argsort(keys[chosen], kind="stable")]

    num_pieces = -(-num_samples // PIECE)
    bounds = [(k << 64) // num_pieces for k in range(num_pieces)]
    for k, low in enumerate(bounds):
        inside = keys >= np.uint64(low)
        if k + 1 < num_pieces:
            inside &= keys < np.uint64(bounds[k + 1])
        chosen = np.flatnonzero(inside)
        yield len(chosen), partial(sort, chosen)


def _blocks(num_samples: int, seed: int, epoch: int) -> Iterator[_Piece]:
    num_blocks = -(-num_samples // BLOCK_SAMPLES)
    shuffled = np.argsort(_keys(0, num_blocks, seed, epoch, _BLOCK_STREAM), kind="stable")
    sizes = np.minimum(num_samples - shuffled * BLOCK_SAMPLES, BLOCK_SAMPLES)
    starts = np.cumsum(sizes) - sizes

    def mix(start: int, end: int) -> np.ndarray:
        first = int(np.searchsorted(starts, start, "right")) - 1
        blocks = shuffled[first : np.searchsorted(starts, end)]
        samples = (blocks[:, None] * BLOCK_SAMPLES + np.arange(BLOCK_SAMPLES)).ravel()
        samples = samples[samples < num_samples][start - starts[first] :][: end - start]
        return samples[np.argsort(_keys(start, end, seed, epoch, _SAMPLE_STREAM), kind="stable")]

    # a small last window would mix too few blocks, so it is merged with the one before it
    window = BLOCK_SAMPLES * MIXED_BLOCKS
    windows = [k * window for k in range(max(num_samples // window, 1))]
    for start, end in zip(windows, [*windows[1:], num_samples], strict=True):
        yield end - start, partial(mix, start, end)


_PIECES: dict[str, Callable[[int, int, int], Iterator[_Piece]]] = {
    "random": _random,
    "sequential": _sequential,
    "blocks": _blocks,
}


def _keys(start: int, end: int, seed: int, epoch: int, stream: int) -> np.ndarray:
    """Return the keys of positions [start, end): uint64."""
    keys = np.empty(end - start, np.uint64)
    # piece by piece: Philox's ten rounds on all at once would take ten times the memory of the keys
    for first in range(start, end, KEYS_AT_ONCE):
        numbers = np.arange(first, min(first + KEYS_AT_ONCE, end))
        low, high, _, _ = philox4x32((stream, 0, numbers, epoch), split_seed(seed))
        keys[numbers - start] = high << np.uint64(32) | low
    return keys


@dataclass(frozen=True, eq=False)
class BatchPlanner:
    """Splits epochs into plans for one rank, and draws their numbers.

    Rank r of W holds rows [r·b, (r+1)·b) of each global batch of W·b samples, so W ranks together see
    exactly the batches of one rank with batch size W·b.
    """

    heights: np.ndarray
    """int [N]: height of each sample of the file, pixels."""
    widths: np.ndarray
    """int [N]: width of each sample of the file, pixels."""
    specs: tuple[ViewSpec, ...]
    """The distributions of the views, in the order of the views."""
    batch_size: int
    """Images per batch on this rank."""
    seed: int = 0
    order: Order = "random"
    rank: int = 0
    world_size: int = 1
    drop_last: bool = True
    subset: np.ndarray | None = None
    """int64, sorted: the samples to use; None means all of the file."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank must be in [0, world_size), got rank {self.rank} of {self.world_size}")
        if self.order not in ORDERS:
            raise ValueError(f"order must be one of {', '.join(ORDERS)}, got {self.order!r}")
        split_seed(self.seed)

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """The groups of views: consecutive views of one size."""
        return groups_of(self.specs)

    @property
    def num_samples(self) -> int:
        """Samples of an epoch, over all ranks."""
        return len(self.heights) if self.subset is None else len(self.subset)

    def num_batches(self) -> int:
        """Return the number of batches of an epoch on this rank."""
        whole, rest = divmod(self.num_samples, self.batch_size * self.world_size)
        if self.drop_last:
            return whole
        low, high = _split(rest, self.world_size, self.rank)
        return whole + (high > low)

    def plans(self, epoch: int, consumed: int = 0) -> Iterator[BatchPlan]:
        """Yield the plans of an epoch, from the one that starts after `consumed` samples (over all ranks).

        With `drop_last=False` the tail is split contiguously over the ranks; a rank may get none of it.
        """
        global_batch = self.batch_size * self.world_size
        # after a resume with another batch size, `consumed` need not be a multiple of the global batch
        pieces = order_pieces(self.num_samples, self.seed, epoch, self.order, consumed)
        global_batches = _regrouped(pieces, global_batch)
        # drawing holds the GIL for a millisecond, and takes nearly as long for a small batch as for a large one
        at_once = max(1, DRAWN_AT_ONCE // self.batch_size)
        step = consumed // global_batch
        while batches := [self._rows(batch) for batch in islice(global_batches, at_once)]:
            drawn = self.draw(epoch, np.concatenate(batches))
            low = 0
            for rows in batches:
                if len(rows):
                    yield BatchPlan(epoch, step, rows, drawn[:, low : low + len(rows)].copy())
                step, low = step + 1, low + len(rows)

    def _rows(self, batch: np.ndarray) -> np.ndarray:
        """Return this rank's samples of a global batch; no samples if it is incomplete and `drop_last` is set."""
        if self.drop_last and len(batch) < self.batch_size * self.world_size:
            return batch[:0]
        low, high = _split(len(batch), self.world_size, self.rank)
        return batch[low:high] if self.subset is None else self.subset[batch[low:high]]

    def draw(self, epoch: int, indices: np.ndarray) -> ViewParams:
        """Draw the numbers of the views of these samples in this epoch."""
        return draw_views(self.specs, self.seed, epoch, indices, self.heights[indices], self.widths[indices])

    def replacement_for(self, index: int) -> int:
        """Return the sample that replaces a corrupt one: the next one of the file (or of the subset), cyclically."""
        if self.subset is None:
            return (index + 1) % len(self.heights)
        return int(self.subset[np.searchsorted(self.subset, index, "right") % len(self.subset)])


def _regrouped(pieces: Iterator[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """Yield the elements of all pieces in arrays of `size`; the last may have fewer."""
    rest = np.empty(0, np.int64)
    for piece in pieces:
        rest = np.concatenate([rest, piece])
        whole = len(rest) - len(rest) % size
        yield from (rest[first : first + size] for first in range(0, whole, size))
        rest = rest[whole:]
    if len(rest):
        yield rest


def _split(rows: int, world_size: int, rank: int) -> tuple[int, int]:
    """Return a rank's contiguous rows [low, high); if the division leaves a remainder, the first ranks get one more."""
    rows_per_rank, extra = divmod(rows, world_size)
    low = rank * rows_per_rank + min(rank, extra)
    return low, low + rows_per_rank + (rank < extra)
