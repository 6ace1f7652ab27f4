"""NT-Xent in plain torch, on one rank or many: used on CPUs, and the reference for the fused form.

Legend: W ranks, m = 2n rows of this rank, M = W·m rows in all, D width; z normalised, s = z zᵀ, τ temperature.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from fastclr.loss.rows import check_rows, first_order, gather_rows, normalize_rows

BLOCK = 1 << 24
"""Maximum number of similarities held at once: 64 MB of float32.  Memory is O(M·D), not O(M²)."""


def nt_xent_reference(z: Tensor, temperature: float, group: dist.ProcessGroup | None = None) -> Tensor:
    """Return the mean over this rank's rows of −log softmax of the positive among the M − 1 other rows.

    `fastclr.loss.nt_xent` has the definition.  Gradients are those of the sum of the ranks' losses.  Everything
    is computed in float32 (float64 for float64 input), also under autocast.
    """
    check_rows(z, group)
    with torch.autocast(z.device.type, enabled=False):
        return _NTXent.apply(normalize_rows(z), temperature, group)


class _NTXent(torch.autograd.Function):
    """Takes two small all-gathers forward (z, and one float per row), none backward.

    s is symmetric and "the positive of" is an involution, so a rank can compute the whole gradient of its own
    rows, under its own losses and under those of the other ranks.

        loss   = mean_i (lse_i − s_i,pos(i)/τ)                   lse_i = log Σ_{j≠i} exp(s_ij/τ)
        dz_i   = 1/(τm) Σ_{j≠i} (p_ij + p_ji − 2[j = pos(i)]) z_j         p_ij = exp(s_ij/τ − lse_i)
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, temperature: float, group: dist.ProcessGroup | None) -> Tensor:
        z_all = gather_rows(z, group)
        positives = (z * z.roll(len(z) // 2, 0)).sum(1) / temperature
        lse = torch.empty_like(positives)
        own = _first_row(z, group)
        for rows in row_blocks(len(z), len(z_all)):
            logits = z[rows] @ z_all.T / temperature
            # −inf instead of a large number: every dtype has it, and its exp is exactly 0
            logits.diagonal(own + rows.start).fill_(float("-inf"))
            lse[rows] = torch.logsumexp(logits, 1)
        ctx.save_for_backward(z, z_all, lse, gather_rows(lse, group))
        ctx.temperature, ctx.own = temperature, own
        return (lse - positives).mean()

    @staticmethod
    @first_order
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        z, z_all, lse, lse_all = ctx.saved_tensors
        dz = torch.empty_like(z)
        with torch.autocast(z.device.type, enabled=False):
            for rows in row_blocks(len(z), len(z_all)):
                logits = z[rows] @ z_all.T / ctx.temperature
                p = torch.exp(logits - lse[rows, None]) + torch.exp(logits - lse_all)
                p.diagonal(ctx.own + rows.start).fill_(0.0)
                torch.mm(p, z_all, out=dz[rows])
            dz -= 2 * z.roll(len(z) // 2, 0)
            return dz * (grads[0] / (ctx.temperature * len(z))), None, None


def _first_row(z: Tensor, group: dist.ProcessGroup | None) -> int:
    """Return the number of this rank's first row among all rows."""
    return 0 if group is None else group.rank() * len(z)


def row_blocks(num_rows: int, num_columns: int) -> Iterator[slice]:
    """Yield slices that cover the rows, each with at most `BLOCK` similarities (or one row)."""
    size = max(1, BLOCK // num_columns)
    return (slice(first, min(first + size, num_rows)) for first in range(0, num_rows, size))
