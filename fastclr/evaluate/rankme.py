"""RankMe: the effective rank of features, a measure of an encoder that needs no labels.

Garrido et al. 2023 (arXiv 2210.02885), equations 1 and 2, with the singular values σ of the features:

    p_k = σ_k / Σ σ + ε        RankMe = exp(−Σ p_k log p_k)

It is 1 if all features lie on one line, and min(N, D) if N features of D dimensions fill the space evenly.
"""

import math

import torch
import torch.distributed as dist
from torch import Tensor

from fastclr.loss.rows import gather_rows

EPS = 1e-7
MAX_IMAGES = 512
"""Images of a batch whose features are looked at: few, so that a log line costs little."""


@torch.no_grad()
def effective_rank(features: Tensor) -> float:
    """Return the effective rank of features [N, D], from 1 to min(N, D); NaN if some are not finite.

    >>> round(effective_rank(torch.eye(5)), 3)
    5.0
    """
    if not features.isfinite().all():
        return math.nan
    features = features.double()
    # the eigenvalues of the smaller of the two products are σ², and take a fraction of the time of the σ themselves
    product = features @ features.T if len(features) <= features.shape[1] else features.T @ features
    sigma = torch.linalg.eigvalsh(product).clamp(min=0).sqrt()
    p = sigma / sigma.sum().clamp(min=EPS) + EPS
    return float(torch.exp(-(p * p.log()).sum()))


def batch_rank(h: Tensor, group: dist.ProcessGroup | None = None) -> float:
    """Return the effective rank of the features of a step's first 512 images, over all ranks, in view 0.

    Ranks together see the images that one process sees, so the result is the same on every rank, and up to rounding
    that of one process.

    Args:
        h: [2n, D], view 0 first.
        group: ranks that share the step; None: only this process.
    """
    own = h[: len(h) // 2][:MAX_IMAGES].float()
    return effective_rank(gather_rows(own, group)[:MAX_IMAGES])
