"""Metrics that are logged beside NT-Xent: contrastive accuracy, and entropy of the softmax."""

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from fastclr.loss.nt_xent.reference import row_blocks
from fastclr.loss.rows import check_rows, gather_rows, normalize_rows


class ContrastiveMetrics(NamedTuple):
    """Means over the images of this rank, 0-dim tensors on z's device."""

    accuracy: Tensor
    """Fraction of images whose view 0 is nearer to their own view 1 than to view 1 of any other image."""
    entropy: Tensor
    """Entropy of the softmax over those similarities, in nats: from 0 (one has all the weight) to log N (all equal)."""


@torch.no_grad()
def contrastive_metrics(
    z: Tensor, temperature: float, group: dist.ProcessGroup | None = None
) -> ContrastiveMetrics:
    """Return contrastive top-1 accuracy among the N images, and entropy of the rows, as the authors' code logs them.

    Rows are view 0 of this rank's images, columns view 1 of all ranks' images.  There is no gradient, and the whole
    N × N matrix is never held.

    Args:
        z: [2n, D], un-normalised, view 0 first, as for `nt_xent`.
        temperature: τ, positive; affects only the entropy.
        group: ranks whose images are candidates too; None: only this process.
    """
    n = check_rows(z, group)
    with torch.autocast(z.device.type, enabled=False):
        z = normalize_rows(z)
        candidates = gather_rows(z[n:], group)
        own = torch.arange(n, device=z.device) + (0 if group is None else group.rank() * n)
        hits, entropy = z.new_empty(n), z.new_empty(n)
        for rows in row_blocks(n, len(candidates)):
            logits = z[:n][rows] @ candidates.T / temperature
            hits[rows] = (logits.argmax(1) == own[rows]).to(z.dtype)
            logp = logits.log_softmax(1)
            entropy[rows] = -(logp.exp() * logp).sum(1)
    return ContrastiveMetrics(hits.mean(), entropy.mean())
