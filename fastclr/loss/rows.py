"""Checks, normalises and gathers the rows of z from all ranks: the first part of every contrastive loss.

The loss of rank r is the mean over the rows of that rank.  DDP averages the ranks' weight gradients, and the average of
the ranks' losses is the mean over all rows.  So the gradient that a rank returns for its own rows must be that of the
*sum* of all ranks' losses, not only of its own.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor


def first_order(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a backward so that it raises on `create_graph=True`: it is not differentiable itself."""

    @functools.wraps(backward)
    def checked(ctx: Any, *grads: Tensor) -> Any:
        if torch.is_grad_enabled():
            raise RuntimeError("this loss has no second derivative: leave out create_graph=True")
        return backward(ctx, *grads)

    return checked


def check_rows(z: Tensor, group: dist.ProcessGroup | None = None) -> int:
    """Check z [2n, D], and return the number of pairs n, which must be the same on every rank.

    All-gathers the row count over the CPU backend if the group has one, so that the host need not wait for the GPU.
    Skipped while a CUDA graph is captured, where shapes are static.

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
    """Return rows of unit length, in float32 (float64 for float64 input).

    The norm is at least 1e-6, as in the authors' code, so a row of zeros stays zero and has a finite gradient.
    """
    return F.normalize(z if z.dtype == torch.float64 else z.float(), eps=1e-6)


def gather_rows(x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """Return the rows of all ranks, [W·m, …], in the order of the ranks, without a gradient; without a group, x."""
    if group is None:
        return x
    rows = x.new_empty((group.size() * x.shape[0], *x.shape[1:]))
    dist.all_gather_into_tensor(rows, x.contiguous(), group=group)
    return rows


def gather_rows_with_gradient(x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """Gather the rows of all ranks like `gather_rows`; a row's gradient is the sum over all ranks' losses."""
    return x if group is None else _GatherRows.apply(x, group)


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group, ctx.num_rows = group, x.shape[0]
        return gather_rows(x, group)

    @staticmethod
    @first_order
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        # gloo has no reduce-scatter: an all-reduce, of which one slice is kept
        total = grads[0].contiguous().clone()
        dist.all_reduce(total, group=ctx.group)
        first = ctx.group.rank() * ctx.num_rows
        return total[first : first + ctx.num_rows], None
