"""One LARS step as two Triton launches over a table of all tensors; nothing in it waits for the device.

    norms_kernel     partial ‖w‖² and ‖step‖² of each chunk of the adapted tensors      8 bytes per parameter
    update_kernel    adds up its tensor's partials; momentum and weights               20 bytes per parameter

The table (addresses, sizes, decays) is made on the host and kept while the tensors stay in place.  When gradients move,
as they may with `zero_grad(set_to_none=True)`, the table is made again and a few kilobytes are copied from pinned
memory: half a millisecond of the host's time for a ResNet-50, none of the device's.  Gradients stay in place with
`zero_grad(set_to_none=False)` or DDP's bucket views.

CUDA graphs: a captured step makes its own table, whose copy becomes a node of the graph, so the tensors must stay where
they were at capture.  An `lr` that is a tensor on the device is read there, so that a schedule can change it between
replays; a number is frozen into the graph, like decay, momentum and trust coefficient.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import triton
from torch import Tensor

from fastclr.optim.lars import kernels
from fastclr.optim.lars.reference import FORMS

CHUNK = 8192
"""Elements per program: some thousand short programs for a ResNet-50."""
BLOCK, NUM_WARPS = 2048, 8
"""Elements that a program processes at once: two 16-byte loads per thread and tensor."""
PARTIALS = 256
LAUNCH = {"num_warps": NUM_WARPS, "enable_fp_fusion": True}

INTERPRETED = not isinstance(kernels.update_kernel, triton.JITFunction)
"""Whether Triton's interpreter runs the kernels, which it does on CPU tensors."""


@dataclass(eq=False)
class _Plan:
    """The tables of a step on the device."""

    key: list
    """Addresses, decays and adaptation that it was made for."""
    table: Tensor
    decays: Tensor
    chunk_tensors: Tensor
    """int32: the tensor of each chunk; adapted tensors come first."""
    partials: Tensor
    num_adapted_chunks: int
    host: list[Tensor]
    """Pinned memory that table, decays and chunk_tensors are copied from, in a graph at every replay."""


class FusedStep:
    """The step for one list of parameters; keeps the table on the device from call to call.

    A captured CUDA graph reads tables that are kept here: this object must live as long as the graph.
    """

    def __init__(self) -> None:
        self._last: _Plan | None = None
        self._captured: list[_Plan] = []

    @torch.no_grad()
    def __call__(
        self,
        params: Sequence[Tensor],
        grads: Sequence[Tensor],
        buffers: Sequence[Tensor],
        *,
        lr: float | Tensor,
        momentum: float,
        weight_decay: Sequence[float],
        trust_coefficient: float,
        adapt: Sequence[bool],
        form: str,
    ) -> None:
        """Update `params` and `buffers` in place; `reference_step` has the equations and the arguments.

        Every run gives the same results.  Sums of squares are float32.

        Raises:
            ValueError: tensors that aren't float32, or aren't on one CUDA device.
        """
        assert form in FORMS, form
        if not params:
            return
        # Autograd gives gradients the memory order of the parameters; a user may have set one with another order.
        pairs = zip(params, grads, strict=True)
        grads = [g if _laid_out_alike(g, p) else torch.empty_like(p).copy_(g) for p, g in pairs]
        plan = self._plan(params, grads, buffers, weight_decay, adapt)
        on_device = isinstance(lr, Tensor) and lr.device == params[0].device
        constants = {"FORM": form, "CHUNK": CHUNK, "BLOCK": BLOCK, "COLUMNS": kernels.COLUMNS}
        with torch.cuda.device_of(params[0]):
            if plan.num_adapted_chunks:
                kernels.norms_kernel[(plan.num_adapted_chunks,)](
                    plan.table,
                    plan.decays,
                    plan.chunk_tensors,
                    plan.partials,
                    float(momentum),
                    **constants,
                    **LAUNCH,
                )
            if len(plan.chunk_tensors):
                kernels.update_kernel[(len(plan.chunk_tensors),)](
                    plan.table, plan.decays, plan.chunk_tensors, plan.partials,
                    lr if on_device else float(lr), float(momentum), float(trust_coefficient),
                    LR_ON_DEVICE=on_device, PARTIALS=PARTIALS, **constants, **LAUNCH,
                )  # fmt: skip

    def _plan(
        self,
        params: Sequence[Tensor],
        grads: Sequence[Tensor],
        buffers: Sequence[Tensor],
        decays: Sequence[float],
        adapt: Sequence[bool],
    ) -> _Plan:
        """Return the last plan if it still holds, else a new one.

        While a graph is captured, the plan becomes the graph's own:
        - the graph copies the table from pinned memory at every replay, so nothing else may write there;
        - the last plan is reused if it holds;
        - a new one takes over the last one's pinned memory: not every torch can allocate that during a capture.
        """
        last = self._last
        key = [t.data_ptr() for tensors in (params, grads, buffers) for t in tensors] + [*decays, *adapt]
        holds = last is not None and last.key == key
        if params[0].is_cuda and torch.cuda.is_current_stream_capturing():
            spare = last.host if last else []
            plan = last if holds else _make_plan(key, params, grads, buffers, decays, adapt, spare)
            assert plan is not None
            self._captured.append(plan)
            self._last = None
            return plan
        if not holds:
            last = self._last = _make_plan(key, params, grads, buffers, decays, adapt, spare=[])
        assert last is not None
        return last


def fused_step(
    params: Sequence[Tensor], grads: Sequence[Tensor], buffers: Sequence[Tensor], **settings: Any
) -> None:
    """Take one `FusedStep` and keep nothing for the next one; it can't be captured in a CUDA graph."""
    FusedStep()(params, grads, buffers, **settings)


def _make_plan(
    key: list,
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    buffers: Sequence[Tensor],
    decays: Sequence[float],
    adapt: Sequence[bool],
    spare: list[Tensor],
) -> _Plan:
    device = params[0].device
    _check(device, params, grads, buffers)
    order = sorted(range(len(params)), key=lambda i: not adapt[i])
    num_chunks = np.array([-(-params[i].numel() // CHUNK) for i in order])
    rows = np.empty((len(order), kernels.COLUMNS), dtype=np.int64)
    for column, tensors in enumerate((params, grads, buffers)):
        rows[:, column] = [tensors[i].data_ptr() for i in order]
    rows[:, 3] = [params[i].numel() for i in order]
    rows[:, 4] = np.cumsum(num_chunks) - num_chunks
    rows[:, 5] = np.where([adapt[i] for i in order], num_chunks, 0)
    host = [
        torch.from_numpy(rows),
        torch.tensor([decays[i] for i in order], dtype=torch.float32),
        torch.from_numpy(np.repeat(np.arange(len(order), dtype=np.int32), num_chunks)),
    ]
    if [t.shape for t in spare] == [t.shape for t in host]:
        host = [old.copy_(new) for old, new in zip(spare, host, strict=True)]
    elif device.type == "cuda":
        host = [t.pin_memory() for t in host]
    table, device_decays, chunk_tensors = (t.to(device, non_blocking=True) for t in host)
    num_adapted_chunks = int(rows[:, 5].sum())
    return _Plan(
        key=key,
        table=table,
        decays=device_decays,
        chunk_tensors=chunk_tensors,
        partials=torch.empty(2 * max(1, num_adapted_chunks), device=device),
        num_adapted_chunks=num_adapted_chunks,
        host=host,
    )


def _check(
    device: torch.device, params: Sequence[Tensor], grads: Sequence[Tensor], buffers: Sequence[Tensor]
) -> None:
    for param, grad, buffer in zip(params, grads, buffers, strict=True):
        for t in (param, grad, buffer):
            if t.dtype != torch.float32 or t.device != device or not (t.is_cuda or INTERPRETED):
                raise ValueError(
                    f"the fused LARS step got a {t.dtype} tensor on {t.device}; it takes float32 on one CUDA"
                    " device: use impl='auto'"
                )
        # empty_like keeps strides that fill a range of memory, in whatever order, and no others
        dense = torch.empty_like(param, device="meta").stride() == param.stride()
        if not dense or not _laid_out_alike(buffer, param):
            raise ValueError(
                f"the fused LARS step got a parameter of strides {param.stride()} and its momentum of strides"
                f" {buffer.stride()}; it takes dense tensors, laid out alike: use impl='reference'"
            )


def _laid_out_alike(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors have their elements in the same order in memory.

    Strides of dimensions of size 1 are ignored: for a channels-first weight of a 1×1 convolution autograd may give a
    channels-last gradient.
    """
    if one.stride() == other.stride():
        return True
    used = [size > 1 for size in one.shape]
    return one.shape == other.shape and all(
        a == b for a, b, use in zip(one.stride(), other.stride(), used, strict=True) if use
    )
