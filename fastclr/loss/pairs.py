"""Similarities for the pairwise losses of SimCLR's Table 2: one positive and many negatives for each row."""

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from fastclr.loss.rows import check_rows, gather_rows_with_gradient, normalize_rows


class Pairs(NamedTuple):
    """Cosine similarities of this rank's m rows, float32 (float64 for float64 input)."""

    positive: Tensor
    """[m]: with the other view of the same image."""
    all: Tensor
    """[m, M]: with every row of every rank."""
    is_negative: Tensor
    """bool [m, M]: all columns but the row itself and its positive."""


def pair_similarities(z: Tensor, group: dist.ProcessGroup | None = None) -> Pairs:
    """Return the similarities of z [2n, D], un-normalised, view 0 first; other ranks' rows have gradients too."""
    n = check_rows(z, group)
    with torch.autocast(z.device.type, enabled=False):
        z = normalize_rows(z)
        similarities = z @ gather_rows_with_gradient(z, group).T
    own = torch.arange(2 * n, device=z.device)
    other = own.roll(n)
    first = 0 if group is None else group.rank() * 2 * n
    is_negative = torch.ones_like(similarities, dtype=torch.bool)
    for partner in (own, other):  # indexing with a number would make older versions of torch wait
        is_negative.scatter_(1, (first + partner)[:, None], False)
    return Pairs(similarities[own, first + other], similarities, is_negative)


def semi_hard(pairs: Pairs) -> Tensor:
    """Return a mask, bool [m, M], of each row's hardest negative that is farther than the positive.

    There is at most one per row, and none if all negatives are nearer than the positive (Schroff et al. 2015).
    """
    farther = pairs.is_negative & (pairs.all < pairs.positive[:, None])
    hardest = pairs.all.masked_fill(~farther, -torch.inf).argmax(1)
    chosen = torch.zeros_like(farther)
    chosen.scatter_(1, hardest[:, None], True)
    return chosen & farther
