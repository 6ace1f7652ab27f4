"""Gaussian blur on the matrix units: Y = G X Gᵀ with a banded G per view, one Triton kernel.

G [SIZE, SIZE] holds the normalised taps for the view's sigma around its diagonal.  A tap beyond the border is added
where torch's reflect padding takes its pixel from, so no padded image is needed.  Only blocks of G around the diagonal
are made: ROWS × COLUMNS results take (ROWS + 32) × (COLUMNS + 32) pixels, 16 more on every side, hence at most 16 taps
on either side.  At 224 pixels (23 taps) that is 256 multiply-adds per value in matrix instructions, instead of 46 plain
ones with a load each.

Half-precision views, bfloat16 ones included, are blurred from float16 planes: pixels, taps and the result of the first
product lose at most 2⁻¹² of 1 each.  Float32 takes three tf32 products in place of one.
"""

# mypy: disable-error-code="no-untyped-def"
# (Triton takes the types of a kernel's arguments from the launch)

from typing import NamedTuple

import torch

from pipelines.ops.augment.gpu_color import BLURRED, SIGMA, SOLARIZE, table_row
from pipelines.ops.rgb_gpu import store_rgb, tl, triton

MAX_RADIUS = 16
"""Maximum number of taps on either side; a view of 339 pixels has that many."""
_HALO = tl.constexpr(MAX_RADIUS)
COLUMNS = tl.constexpr(32)
"""Width of a tile.  With its halo it must be a power of two; 96 would need too many registers."""


class BlurLaunch(NamedTuple):
    rows: int
    """Height of a tile."""
    num_warps: int
    num_stages: int
    """2: the planes of the next tile are copied to shared memory while this one is multiplied."""


def blur_launch(dtype: torch.dtype, capability: tuple[int, int]) -> BlurLaunch:
    """Return the tile of the blur for a type of the planes and a GPU's compute capability.

    It is the largest tile for which the compiler spills nothing.  Hopper multiplies 64 rows directly from shared
    memory; other GPUs hold the operands in registers, of which smaller tiles take fewer.  Below 8.0 the compiler uses
    no matrix units, and plain multiply-adds need even more registers.
    """
    if dtype == torch.float32 or capability < (8, 0):
        return BlurLaunch(rows=16, num_warps=8, num_stages=2)
    return BlurLaunch(rows=64 if capability[0] == 9 else 32, num_warps=4, num_stages=2)


@triton.jit(do_not_specialize=["num_views"])
def blur_kernel(
    p_planes,  # float16 or float32 [blurred, 3, SIZE, SIZE], in [0, 1]
    p_table,  # float32 [(steps,) N, TABLE_COLUMNS]
    p_step,  # int64 [1] or None
    p_views,  # [N, SIZE, SIZE, 3]: blurred and normalised
    num_views,
    scale_r,  # 1/std
    scale_g,
    scale_b,
    shift_r,  # −mean/std
    shift_g,
    shift_b,
    SIZE: tl.constexpr,
    RADIUS: tl.constexpr,
    ROWS: tl.constexpr,
    WIDE: tl.constexpr,  # SIZE is a multiple of 8
):
    STRIPS: tl.constexpr = (SIZE + ROWS - 1) // ROWS
    PLANE: tl.constexpr = SIZE * SIZE
    i_slot = tl.program_id(0) // STRIPS
    row = tl.program_id(0) % STRIPS * ROWS
    i_view = tl.load(table_row(p_table, p_step, i_slot, num_views) + BLURRED).to(tl.int32)
    if i_view < 0:
        return
    sigma = tl.load(table_row(p_table, p_step, i_view, num_views) + SIGMA)
    rate = -0.5 * 1.4426950408889634 / (sigma * sigma)  # exp(−d²/2σ²) = 2^(rate·d²)
    o_tap = tl.arange(0, 32)
    taps = tl.where(o_tap <= RADIUS, tl.exp2(rate * (o_tap * o_tap).to(tl.float32)), 0.0)
    norm = 1 / (2 * tl.sum(taps, axis=0) - 1)

    dtype = p_planes.dtype.element_ty
    p_planes += i_slot.to(tl.int64) * (3 * PLANE)
    p_views += i_view.to(tl.int64) * (3 * PLANE)
    # ROWS + 32 source rows, in two parts because a block has a power of two of them
    o_row = row + tl.arange(0, ROWS)
    o_upper = row - _HALO + tl.arange(0, ROWS)
    o_lower = row - _HALO + ROWS + tl.arange(0, 2 * _HALO)
    upper = _taps(o_row[:, None], o_upper[None, :], rate, norm, SIZE, RADIUS).to(dtype)
    lower = _taps(o_row[:, None], o_lower[None, :], rate, norm, SIZE, RADIUS).to(dtype)
    m_upper = ((o_upper >= 0) & (o_upper < SIZE))[:, None]
    m_lower = ((o_lower >= 0) & (o_lower < SIZE))[:, None]
    for column in range(0, SIZE, COLUMNS):
        o_column = column + tl.arange(0, COLUMNS)
        o_source = column - _HALO + tl.arange(0, COLUMNS + 2 * _HALO)
        right = _taps(o_column[None, :], o_source[:, None], rate, norm, SIZE, RADIUS).to(dtype)
        m_source = ((o_source >= 0) & (o_source < SIZE))[None, :]
        p_upper = p_planes + o_upper[:, None] * SIZE + o_source[None, :]
        p_lower = p_planes + o_lower[:, None] * SIZE + o_source[None, :]
        r = _blur(p_upper, p_lower, m_upper & m_source, m_lower & m_source, upper, lower, right)
        p_upper += PLANE
        p_lower += PLANE
        g = _blur(p_upper, p_lower, m_upper & m_source, m_lower & m_source, upper, lower, right)
        p_upper += PLANE
        p_lower += PLANE
        b = _blur(p_upper, p_lower, m_upper & m_source, m_lower & m_source, upper, lower, right)

        RUNS: tl.constexpr = ROWS * COLUMNS // 8
        o_run = tl.arange(0, RUNS)
        i_row = row + o_run // (COLUMNS // 8)
        i_column = column + o_run % (COLUMNS // 8) * 8
        num_valid = tl.where(i_row < SIZE, SIZE - i_column, 0)
        r = tl.reshape((r * scale_r + shift_r).to(p_views.dtype.element_ty), [RUNS, 8])
        g = tl.reshape((g * scale_g + shift_g).to(p_views.dtype.element_ty), [RUNS, 8])
        b = tl.reshape((b * scale_b + shift_b).to(p_views.dtype.element_ty), [RUNS, 8])
        # after the rounding and in a branch: before the rounding it would take 67 more registers, and spill
        threshold = tl.load(table_row(p_table, p_step, i_view, num_views) + SOLARIZE)
        if threshold <= 1:
            r = _solarize(r, threshold, scale_r, shift_r)
            g = _solarize(g, threshold, scale_g, shift_g)
            b = _solarize(b, threshold, scale_b, shift_b)
        store_rgb(p_views, i_row * SIZE + i_column, num_valid, r, g, b, WIDE)


@triton.jit
def _solarize(x, threshold, scale, shift):
    """Invert what is at or above the threshold in a normalised block: 1 − x becomes s + 2·t − (s·x + t)."""
    # the limit is rounded like x, so values at or above the threshold stay so after the rounding
    limit = (threshold * scale + shift).to(x.dtype).to(tl.float32)
    normalised = x.to(tl.float32)
    return tl.where(normalised >= limit, (scale + 2 * shift - normalised).to(x.dtype), x)


@triton.jit
def _blur(p_upper, p_lower, m_upper, m_lower, upper, lower, right):
    """Blur one channel: from the pixels of a tile and its halo to float32 [ROWS, COLUMNS]."""
    x = tl.dot(upper, tl.load(p_upper, mask=m_upper, other=0.0), input_precision="tf32x3")
    x = tl.dot(lower, tl.load(p_lower, mask=m_lower, other=0.0), x, input_precision="tf32x3")
    return tl.dot(x.to(right.dtype), right, input_precision="tf32x3")


@triton.jit
def _taps(o_result, o_source, rate, norm, SIZE: tl.constexpr, RADIUS: tl.constexpr):
    """Return a block of G: the weights of the source pixels in the results, mirrored at both borders."""
    weight = _tap(o_source - o_result, rate, RADIUS)
    # a border pixel is its own mirror image and counts once
    weight += tl.where(o_source > 0, _tap(o_source + o_result, rate, RADIUS), 0.0)
    weight += tl.where(o_source < SIZE - 1, _tap(2 * (SIZE - 1) - o_source - o_result, rate, RADIUS), 0.0)
    return weight * norm


@triton.jit
def _tap(distance, rate, RADIUS: tl.constexpr):
    inside = (distance <= RADIUS) & (distance >= -RADIUS)
    return tl.where(inside, tl.exp2(rate * (distance * distance).to(tl.float32)), 0.0)
