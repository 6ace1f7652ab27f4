"""NT-Xent without the 2N × 2N matrix: the kernels' launches as two torch operators, and their gradient.

    nt_xent(h)                                                 nt_xent_backward(grad)
      normalize_kernel    h → z, 1/‖h‖, positives                dz_kernel    Σ_j w_ij z_j, in column ranges
      all-gather          z                                      dh_kernel    + the positive; through the norm
      row_sums_kernel     Σ_j exp((s_ij − 1)/τ), in ranges
      row_losses_kernel   + the positive → 1/Σ_j, loss_i
      all-gather          1/Σ_j

Everything stays on the device, and backward needs no other rank.  Both operators are opaque to torch.compile,
which keeps them whole, collectives and tile choice included; a CUDA graph captures their launches.  (They are
defined by `torch.library.define`: `custom_op` would import torch's compiler, which takes seconds.)
"""

from typing import Any

import torch
import torch.distributed as dist
import triton
from torch import Tensor

from fastclr.loss.nt_xent import kernels
from fastclr.loss.nt_xent.tiles import (
    MAX_FUSED_WIDTH,
    MAX_RESIDENT,
    MIN_FUSED_TEMPERATURE,
    choose_splits,
    choose_tiles,
    gpu_facts,
)
from fastclr.loss.rows import check_rows

EPS = 1e-6
"""Lower bound of the norms, as in `normalize_rows`."""

WEIGHT_SCALE = 2.0**14
"""Scale of the weights (0 to 2): scaled ones are within float16's range, and those down to 4e-12 are not lost."""

LOG2_E = 1.4426950408889634
LAUNCH = {"enable_fp_fusion": True}
"""For every launch: a fused multiply-add is more exact as well as faster (Triton's default is changing)."""

INTERPRETED = not isinstance(kernels.dz_kernel, triton.JITFunction)
"""Whether Triton's interpreter runs the kernels, which it does on CPU tensors."""


def nt_xent_fused(z: Tensor, temperature: float, group: dist.ProcessGroup | None = None) -> Tensor:
    """Return `nt_xent`, computed by Triton kernels; `fastclr.loss.nt_xent` has the definition.

    Every run gives the same results.  Memory: z of all ranks in float16, and per row of this rank M/64 bytes
    (forward) or a few float32 rows (backward), against 4·M bytes of the plain form.

    Args:
        z: [2n, D ≤ 512], un-normalised, float16, bfloat16 or float32, on a CUDA device.
        temperature: τ ≥ 0.03.
        group: ranks whose rows are negatives too; None: only this process.

    Raises:
        ValueError: for anything else.
    """
    check_rows(z, group)
    if z.dtype not in (torch.float16, torch.bfloat16, torch.float32) or z.shape[1] > MAX_FUSED_WIDTH:
        raise ValueError(
            f"the fused NT-Xent got z {z.dtype} {list(z.shape)}; it takes float16, bfloat16 or float32 of width"
            f" {MAX_FUSED_WIDTH} at most: use impl='auto'"
        )
    if temperature < MIN_FUSED_TEMPERATURE:
        raise ValueError(
            f"the fused NT-Xent got temperature {temperature}; below {MIN_FUSED_TEMPERATURE} its float32 sums"
            " underflow: use impl='auto'"
        )
    if not (z.is_cuda or INTERPRETED):
        raise ValueError(f"the fused NT-Xent got z on {z.device}; it needs a CUDA device: use impl='auto'")
    return torch.ops.fastclr.nt_xent(z, temperature, "" if group is None else group.group_name)[0]


def _nt_xent(h: Tensor, temperature: float, group_name: str) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the loss [] and the tensors for backward: z [rows, D], inv_norms [2n], one_minus_p [2n], inv_sums [rows].

    z and inv_sums hold the rows of all ranks, then zeros up to where the last tile ends.
    """
    group = _group(group_name)
    rank, world_size = (0, 1) if group is None else (group.rank(), group.size())
    own_rows, width = h.shape
    n, num_rows, row0 = own_rows // 2, own_rows * world_size, own_rows * rank
    padded_rows, padded_width = _padded(num_rows, width)
    capability, num_multiprocessors = gpu_facts(h.device)
    tiles, _ = choose_tiles(padded_width, capability)
    scale = LOG2_E / temperature

    h = h.contiguous()
    z = h.new_empty(padded_rows, padded_width, dtype=torch.float16)
    inv_norms, one_minus_p, losses = (h.new_empty(own_rows, dtype=torch.float32) for _ in range(3))
    positives = h.new_empty(n, dtype=torch.float32)
    inv_sums = h.new_empty(padded_rows, dtype=torch.float32)
    pairs = max(1, 2048 // padded_width)
    with torch.cuda.device_of(h):
        grid = (triton.cdiv(n, pairs) + triton.cdiv(padded_rows - num_rows, pairs),)
        kernels.normalize_kernel[grid](
            h, z, inv_norms, positives, inv_sums, row0, n, num_rows, padded_rows,
            EPS=EPS, WIDTH=width, D=padded_width, PAIRS=pairs, num_warps=4, **LAUNCH,
        )  # fmt: skip
        _gather(z, own_rows, group)

        symmetric = world_size == 1
        num_blocks = triton.cdiv(own_rows, tiles.resident)
        if symmetric:
            num_tiles = (num_blocks // 2 + 1) * (tiles.resident // tiles.streamed)
        else:
            num_tiles = triton.cdiv(num_rows, tiles.streamed)
        splits = choose_splits(num_blocks, num_tiles, num_multiprocessors * tiles.programs)
        num_partials = splits + (num_blocks // 2 if symmetric else 0)
        stride = num_blocks * tiles.resident
        partials = h.new_empty(num_partials, stride, dtype=torch.float32)
        kernels.row_sums_kernel[(num_blocks, splits)](
            z, partials, row0, n, num_rows, stride, num_tiles, triton.cdiv(num_tiles, splits), scale,
            SYMMETRIC=symmetric, D=padded_width, OWN=tiles.resident, OTHER=tiles.streamed,
            num_warps=tiles.num_warps, num_stages=tiles.num_stages, **LAUNCH,
        )  # fmt: skip
        # With an even number of blocks, only those of the second half have sums from the greatest distance.
        last_begin = stride // 2 if symmetric and num_blocks % 2 == 0 else 0
        rows, lines = 64, 32
        kernels.row_losses_kernel[(triton.cdiv(own_rows, rows),)](
            partials, positives, inv_sums, one_minus_p, losses, row0, n, stride, num_partials, last_begin, scale,
            WEIGHT_SCALE=WEIGHT_SCALE, LINES=lines, ROWS=rows, num_warps=4, **LAUNCH,
        )  # fmt: skip
        _gather(inv_sums, own_rows, group)
    return losses.mean(), z, inv_norms, one_minus_p, inv_sums


def _nt_xent_fake(
    h: Tensor, temperature: float, group_name: str
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    group = _group(group_name)
    padded_rows, padded_width = _padded(h.shape[0] * (1 if group is None else group.size()), h.shape[1])
    return (
        h.new_empty((), dtype=torch.float32),
        h.new_empty(padded_rows, padded_width, dtype=torch.float16),
        h.new_empty(h.shape[0], dtype=torch.float32),
        h.new_empty(h.shape[0], dtype=torch.float32),
        h.new_empty(padded_rows, dtype=torch.float32),
    )


def _nt_xent_backward(
    grad: Tensor, z: Tensor, inv_norms: Tensor, one_minus_p: Tensor, inv_sums: Tensor,
    temperature: float, group_name: str, width: int, dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """Return dh [2n, width]: the gradient of the sum of all ranks' losses in this rank's rows, times grad."""
    group = _group(group_name)
    rank, world_size = (0, 1) if group is None else (group.rank(), group.size())
    own_rows, padded_width = len(inv_norms), z.shape[1]
    n, num_rows, row0 = own_rows // 2, own_rows * world_size, own_rows * rank
    capability, num_multiprocessors = gpu_facts(z.device)
    _, tiles = choose_tiles(padded_width, capability)
    scale = LOG2_E / temperature

    num_blocks = triton.cdiv(own_rows, tiles.resident)
    num_tiles = triton.cdiv(num_rows, tiles.streamed)
    splits = choose_splits(num_blocks, num_tiles, num_multiprocessors * tiles.programs)
    stride = num_blocks * tiles.resident
    partials = z.new_empty(splits, stride, padded_width, dtype=torch.float32)
    dh = z.new_empty(own_rows, width, dtype=dtype)
    with torch.cuda.device_of(z):
        kernels.dz_kernel[(num_blocks, splits)](
            z, inv_sums, partials, row0, n, num_rows, stride, num_tiles, triton.cdiv(num_tiles, splits), scale,
            D=padded_width, ROWS=tiles.resident, COLUMNS=tiles.streamed,
            num_warps=tiles.num_warps, num_stages=tiles.num_stages, **LAUNCH,
        )  # fmt: skip
        rows = max(1, 2048 // padded_width)
        kernels.dh_kernel[(triton.cdiv(own_rows, rows),)](
            partials, z, inv_norms, one_minus_p, grad.contiguous(), dh, row0, n, stride, splits,
            1.0 / (temperature * own_rows * WEIGHT_SCALE),
            WEIGHT_SCALE=WEIGHT_SCALE, EPS=EPS, WIDTH=width, D=padded_width, ROWS=rows, num_warps=4, **LAUNCH,
        )  # fmt: skip
    return dh


def _nt_xent_backward_fake(
    grad: Tensor, z: Tensor, inv_norms: Tensor, one_minus_p: Tensor, inv_sums: Tensor,
    temperature: float, group_name: str, width: int, dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    return z.new_empty(inv_norms.shape[0], width, dtype=dtype)


def _save(ctx: Any, inputs: tuple[Tensor, float, str], output: tuple[Tensor, ...]) -> None:
    h, ctx.temperature, ctx.group_name = inputs
    ctx.width, ctx.dtype = h.shape[1], h.dtype
    ctx.save_for_backward(*output[1:])
    ctx.set_materialize_grads(False)  # otherwise torch would allocate zeros as large as z


def _differentiate(ctx: Any, grad: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, None, None]:
    if grad is None:
        return None, None, None
    settings = ctx.temperature, ctx.group_name, ctx.width, ctx.dtype
    return torch.ops.fastclr.nt_xent_backward(grad, *ctx.saved_tensors, *settings), None, None


def _padded(num_rows: int, width: int) -> tuple[int, int]:
    """Return the padded number of rows, so that a tile may begin at any row, and the width padded for matrix units."""
    padded_rows = (num_rows + 2 * MAX_RESIDENT - 1) // MAX_RESIDENT * MAX_RESIDENT
    return padded_rows, max(16, 1 << (width - 1).bit_length())


def _group(name: str) -> dist.ProcessGroup | None:
    """Return a process group by its name, since the arguments of an operator can't be groups."""
    resolve: Any = dist.distributed_c10d._resolve_process_group
    return resolve(name) if name else None


def _gather(rows: Tensor, own_rows: int, group: dist.ProcessGroup | None) -> None:
    """Fill in the rows of the other ranks; this rank's are rows [rank·own_rows, (rank + 1)·own_rows)."""
    if group is not None and group.size() > 1:
        rank, world_size = group.rank(), group.size()
        own = rows[rank * own_rows : (rank + 1) * own_rows]
        dist.all_gather_into_tensor(rows[: world_size * own_rows], own, group=group)


torch.library.define(
    "fastclr::nt_xent",
    "(Tensor h, float temperature, str group_name) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)
torch.library.impl("fastclr::nt_xent", "default", _nt_xent)
torch.library.register_fake("fastclr::nt_xent", _nt_xent_fake)
torch.library.register_autograd("fastclr::nt_xent", _differentiate, setup_context=_save)
torch.library.define(
    "fastclr::nt_xent_backward",
    "(Tensor grad, Tensor z, Tensor inv_norms, Tensor one_minus_p, Tensor inv_sums, float temperature,"
    " str group_name, int width, ScalarType dtype) -> Tensor",
)
torch.library.impl("fastclr::nt_xent_backward", "default", _nt_xent_backward)
torch.library.register_fake("fastclr::nt_xent_backward", _nt_xent_backward_fake)
