"""Rows of z: checked, normalised, and gathered from all ranks.  What every contrastive loss begins with.

A loss of rank r is the mean over the rows of that rank.  DDP averages the ranks' weight gradients, and the
average of the ranks' losses is the mean over all rows: so the gradient that a rank hands to its own rows must be
that of the *sum* of the ranks' losses, of which its own is only one.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor


def first_order(backward: Callable[..., Any]) -> Callable[..., Any]:
    """A backward that says so when a graph of it is wanted, for which it has no derivative: it would be wrong."""

    @functools.wraps(backward)
    def checked(ctx: Any, *grads: Tensor) -> Any:
        if torch.is_grad_enabled():
            raise RuntimeError("this loss has no second derivative: leave out create_graph=True")
        return backward(ctx, *grads)

    return checked


def check_rows(z: Tensor, group: dist.ProcessGroup | None = None) -> int:
    """Number of pairs n in z [2n, D], the same on every rank.

    Asks the other ranks (one number each), except while a CUDA graph is captured, where nobody can wait and shapes
    are fixed.  Asks on the host where the group can, so that the host need not wait for the GPU.

    Raises:
        ValueError: z that isn't two-dimensional floating point with an even number of rows, 2 at least; or
            ranks that don't all have the same number of rows (all of them raise).
    """
    if z.ndim != 2 or not z.is_floating_point() or len(z) < 2 or len(z) % 2:
        raise ValueError(
            f"z is {z.dtype} {list(z.shape)}; it must be floating point [2n, D], the n rows of view 0 first,"
            " then those of view 1"
        )
    if group is not None and not (z.is_cuda and torch.cuda.is_current_stream_capturing()):
        on_host = "cpu" in dist.get_backend_config(group)
        rows = torch.tensor([len(z)], device="cpu" if on_host else z.device)
        counts = gather_rows(rows, group).tolist()
        if len(set(counts)) > 1:
            raise ValueError(
                f"the ranks have {counts} rows of z; they need the same number: drop the incomplete last batch"
            )
    return len(z) // 2


def normalize_rows(z: Tensor) -> Tensor:
    """Rows of unit length, in float32 (float64 for float64 input).

    The norm is kept above 1e-6, as in the authors' code: a row of zeros stays one, with a finite gradient.
    """
    return F.normalize(z if z.dtype == torch.float64 else z.float(), eps=1e-6)


def gather_rows(x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """Rows of all ranks, [W·m, …], in the order of the ranks; without a gradient.  No group: x itself."""
    if group is None:
        return x
    rows = x.new_empty((group.size() * x.shape[0], *x.shape[1:]))
    dist.all_gather_into_tensor(rows, x.contiguous(), group=group)
    return rows


def gather_rows_with_gradient(x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """As `gather_rows`; the gradient of a row is the sum of what all ranks' losses say of it."""
    return x if group is None else _GatherRows.apply(x, group)


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group, ctx.num_rows = group, x.shape[0]
        return gather_rows(x, group)

    @staticmethod
    @first_order
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        # an all-reduce of which one slice is kept: gloo has no reduce-scatter
        total = grads[0].contiguous().clone()
        dist.all_reduce(total, group=ctx.group)
        first = ctx.group.rank() * ctx.num_rows
        return total[first : first + ctx.num_rows], None
