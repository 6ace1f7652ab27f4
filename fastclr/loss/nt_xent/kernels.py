"""The Triton kernels of NT-Xent.  README.md beside this file derives what they compute; fused.py launches them.

Legend: i a row of this rank, j any row; z [rows, D] normalised, float16, with zero rows behind the last one;
D width padded to a power of two; scale = log2(e)/τ, so that exp((s − 1)/τ) = exp2(s·scale − scale).
Prefixes: p_ pointer, i_ program index, o_ offsets, m_ mask, b_ a block's values.

The two large kernels leave out j = i and j = the positive of i, which is added in float32 afterwards.
Most tiles contain none of these and need no mask.

Integers are not specialised: one compiled kernel serves every batch size, and no kernel gains from the hint.
"""

# mypy: disable-error-code="no-untyped-def"
# (Triton takes the types of a kernel's arguments from the launch)

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["row0", "n", "num_rows", "padded_rows"])
def normalize_kernel(
    p_h, p_z, p_inv_norms, p_positives, p_inv_sums, row0, n, num_rows, padded_rows,
    EPS: tl.constexpr, WIDTH: tl.constexpr, D: tl.constexpr, PAIRS: tl.constexpr,
):  # fmt: skip
    """Write z = h/‖h‖ into this rank's rows of z, 1/‖h‖, and each pair's similarity in float32.

    The programs after the last pair clear rows num_rows to padded_rows of z and of inv_sums.
    """
    i_block = tl.program_id(0)
    o_d = tl.arange(0, D)
    num_blocks = tl.cdiv(n, PAIRS)
    if i_block < num_blocks:
        o_pair = i_block * PAIRS + tl.arange(0, PAIRS)
        m_pair = o_pair < n
        m_row = m_pair[:, None] & (o_d < WIDTH)[None, :]
        o_h = o_pair.to(tl.int64)[:, None] * WIDTH + o_d[None, :]
        b_0 = tl.load(p_h + o_h, mask=m_row, other=0.0).to(tl.float32)
        b_1 = tl.load(p_h + n.to(tl.int64) * WIDTH + o_h, mask=m_row, other=0.0).to(tl.float32)
        b_inv_0 = 1.0 / tl.maximum(tl.sqrt(tl.sum(b_0 * b_0, axis=1)), EPS)
        b_inv_1 = 1.0 / tl.maximum(tl.sqrt(tl.sum(b_1 * b_1, axis=1)), EPS)
        b_0 *= b_inv_0[:, None]
        b_1 *= b_inv_1[:, None]
        tl.store(p_inv_norms + o_pair, b_inv_0, mask=m_pair)
        tl.store(p_inv_norms + n + o_pair, b_inv_1, mask=m_pair)
        tl.store(p_positives + o_pair, tl.sum(b_0 * b_1, axis=1), mask=m_pair)
        o_z = (row0 + o_pair)[:, None] * D + o_d[None, :]
        tl.store(p_z + o_z, b_0.to(tl.float16), mask=m_pair[:, None])
        tl.store(p_z + n * D + o_z, b_1.to(tl.float16), mask=m_pair[:, None])
    else:
        o_pad = num_rows + (i_block - num_blocks) * PAIRS + tl.arange(0, PAIRS)
        m_pad = o_pad < padded_rows
        o_padding = o_pad[:, None] * D + o_d[None, :]
        tl.store(p_z + o_padding, tl.zeros([PAIRS, D], dtype=tl.float16), mask=m_pad[:, None])
        tl.store(p_inv_sums + o_pad, tl.zeros([PAIRS], dtype=tl.float32), mask=m_pad)


@triton.jit(do_not_specialize=["row0", "n", "num_rows", "stride", "num_tiles", "tiles_per_split"])
def row_sums_kernel(
    p_z, p_partials, row0, n, num_rows, stride, num_tiles, tiles_per_split, scale,
    SYMMETRIC: tl.constexpr, D: tl.constexpr, OWN: tl.constexpr, OTHER: tl.constexpr,
):  # fmt: skip
    """Write partial sums of exp((s − 1)/τ) over the negatives: one block of OWN rows against a range of others.

    Not symmetric (the other rows are other ranks' too): tile t holds rows t·OTHER… of all num_tiles·OTHER, and
    split k of the range writes its sums of the own rows to partials[k].

    Symmetric (own rows are all rows): s_ij = s_ji, so each pair of blocks is visited once, for the sums of
    both.  With B blocks in a circle, block b takes itself and the ⌊B/2⌋ after it, which gives all blocks the
    same work (if B is even, the pair at distance B/2 belongs to its first half).  Sums of the other
    block's rows at distance d go to partials[splits + d − 1].
    """
    i_own, i_split = tl.program_id(0), tl.program_id(1)
    num_splits = tl.num_programs(1)
    TILES: tl.constexpr = OWN // OTHER  # of one block
    o_d = tl.arange(0, D)
    o_own = tl.arange(0, OWN)
    o_other = tl.arange(0, OTHER)
    first_own = row0 + i_own * OWN
    b_own = tl.trans(tl.load(p_z + first_own * D + (o_own[:, None] * D + o_d[None, :])))

    begin = i_split * tiles_per_split
    end = tl.minimum(begin + tiles_per_split, num_tiles)
    if SYMMETRIC:
        num_blocks = tl.num_programs(0)
        if (num_blocks % 2 == 0) & (i_own >= num_blocks // 2):
            end = tl.minimum(end, num_tiles - TILES)
    # Sums per element, added up over the tile's rows at the end: a sum over rows crosses lanes and warps.
    b_sums = tl.zeros([OTHER, OWN], dtype=tl.float32)
    for t in range(begin, end):
        if SYMMETRIC:
            tile = i_own * TILES + t
            tile = tl.where(tile >= num_blocks * TILES, tile - num_blocks * TILES, tile)
        else:
            tile = t
        first = tile * OTHER
        b_other = tl.load(p_z + first * D + (o_other[:, None] * D + o_d[None, :]))
        b_s = tl.dot(b_other, b_own)
        shift = first - first_own
        needs_mask = (shift > -OTHER) & (shift < OWN)
        needs_mask |= (shift - n > -OTHER) & (shift - n < OWN)
        needs_mask |= (shift + n > -OTHER) & (shift + n < OWN)
        needs_mask |= (first + OTHER > num_rows) | (first_own + OWN > num_rows)
        if needs_mask:
            other = first + o_other
            positive = tl.where(other - row0 < n, other + n, other - n)
            if not SYMMETRIC:
                # The positive of a row of another rank is on that rank, never among the own rows.
                positive = tl.where((other >= row0) & (other < row0 + 2 * n), positive, -1)
            own = (first_own + o_own)[None, :]
            m_keep = (own != other[:, None]) & (own != positive[:, None])
            m_keep &= (other < num_rows)[:, None] & (own < num_rows)
            b_s = tl.where(m_keep, b_s, float("-inf"))
        b_e = tl.exp2(tl.fma(b_s, scale, -scale))
        b_sums += b_e
        if SYMMETRIC:  # noqa: SIM102  (decided at compile time, the next condition at run time)
            if t >= TILES:
                line = (num_splits + t // TILES - 1).to(tl.int64) * stride
                tl.store(p_partials + line + first + o_other, tl.sum(b_e, axis=1))
    line = i_split.to(tl.int64) * stride
    tl.store(p_partials + line + i_own * OWN + o_own, tl.sum(b_sums, axis=0))


@triton.jit(do_not_specialize=["row0", "n", "stride", "num_partials", "last_begin"])
def row_losses_kernel(
    p_partials, p_positives, p_inv_sums, p_one_minus_p, p_losses, row0, n, stride, num_partials, last_begin, scale,
    WEIGHT_SCALE: tl.constexpr, LINES: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Reduce partial sums to `rest`, and write loss, 1 − p and 1/Σ of each row.

        losses = log(1 + rest/positive)         one_minus_p = rest/(rest + positive) = 1 − p_i,positive
        inv_sums = WEIGHT_SCALE/(rest + positive)

    The last line of partials holds the rows from last_begin on.
    """
    o_row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    m_row = o_row < 2 * n
    b_lines = tl.zeros([LINES, ROWS], dtype=tl.float32)
    for first in range(0, num_partials, LINES):
        o_line = first + tl.arange(0, LINES)
        m_line = (o_line < num_partials - 1)[:, None] | (
            (o_line == num_partials - 1)[:, None] & (o_row >= last_begin)[None, :]
        )
        o_partial = o_line.to(tl.int64)[:, None] * stride + o_row[None, :]
        b_lines += tl.load(p_partials + o_partial, mask=m_line & m_row[None, :], other=0.0)
    b_rest = tl.sum(b_lines, axis=0)
    b_s = tl.load(p_positives + tl.where(o_row < n, o_row, o_row - n), mask=m_row, other=0.0)
    b_positive = tl.exp2(tl.fma(b_s, scale, -scale))
    b_inv_sum = 1.0 / (b_rest + b_positive)
    tl.store(p_inv_sums + row0 + o_row, b_inv_sum * WEIGHT_SCALE, mask=m_row)
    tl.store(p_one_minus_p + o_row, b_inv_sum * b_rest, mask=m_row)
    b_ratio = b_rest / b_positive
    b_small = b_ratio * (1.0 - 0.5 * b_ratio)  # log(1 + x) where adding 1 would lose x
    tl.store(p_losses + o_row, tl.where(b_ratio < 1e-3, b_small, tl.log(1.0 + b_ratio)), mask=m_row)


@triton.jit(do_not_specialize=["row0", "n", "num_rows", "stride", "num_tiles", "tiles_per_split"])
def dz_kernel(
    p_z, p_inv_sums, p_partials, row0, n, num_rows, stride, num_tiles, tiles_per_split, scale,
    D: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Write partial sums of w_ij z_j over the negatives j, with w_ij = exp((s_ij − 1)/τ)·(inv_sums_i + inv_sums_j)."""
    i_row, i_split = tl.program_id(0), tl.program_id(1)
    o_d = tl.arange(0, D)
    o_row = tl.arange(0, ROWS)
    o_column = tl.arange(0, COLUMNS)
    first_row = row0 + i_row * ROWS
    o_tile = o_row[:, None] * D + o_d[None, :]
    b_i = tl.load(p_z + first_row * D + o_tile)
    b_inv_i = tl.load(p_inv_sums + first_row + o_row)
    i = first_row + o_row
    positive = tl.where(i - row0 < n, i + n, i - n)

    begin = i_split * tiles_per_split
    end = tl.minimum(begin + tiles_per_split, num_tiles)
    b_dz = tl.zeros([ROWS, D], dtype=tl.float32)
    for t in range(begin, end):
        first = t * COLUMNS
        b_j = tl.load(p_z + first * D + (o_column[:, None] * D + o_d[None, :]))
        b_inv_j = tl.load(p_inv_sums + first + o_column)
        b_s = tl.dot(b_i, tl.trans(b_j))
        shift = first - first_row
        needs_mask = (shift > -COLUMNS) & (shift < ROWS)
        needs_mask |= (shift - n > -COLUMNS) & (shift - n < ROWS)
        needs_mask |= (shift + n > -COLUMNS) & (shift + n < ROWS)
        needs_mask |= first + COLUMNS > num_rows
        if needs_mask:
            j = (first + o_column)[None, :]
            m_keep = (j != i[:, None]) & (j != positive[:, None]) & (j < num_rows)
            b_s = tl.where(m_keep, b_s, float("-inf"))
        b_w = tl.exp2(tl.fma(b_s, scale, -scale)) * (b_inv_i[:, None] + b_inv_j[None, :])
        b_dz = tl.dot(b_w.to(tl.float16), b_j, b_dz)
    line = (i_split.to(tl.int64) * stride + i_row * ROWS) * D
    tl.store(p_partials + line + o_tile, b_dz)


@triton.jit(do_not_specialize=["row0", "n", "stride", "num_splits"])
def dh_kernel(
    p_partials, p_z, p_inv_norms, p_one_minus_p, p_grad, p_dh, row0, n, stride, num_splits, factor,
    WEIGHT_SCALE: tl.constexpr, EPS: tl.constexpr, WIDTH: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Write dh = (dz − (dz·z) z)/‖h‖, through the normalisation, from dz = (Σ partials + w z_positive)·factor·grad.

    The positive's weight p_ij + p_ji − 2 goes to 0 as training succeeds, hence it is computed from 1 − p of both.
    """
    o_row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    o_d = tl.arange(0, D)
    m_row = o_row < 2 * n
    o_positive = tl.where(o_row < n, o_row + n, o_row - n)
    b_dz = tl.zeros([ROWS, D], dtype=tl.float32)
    for i_split in range(num_splits):
        line = (i_split * stride).to(tl.int64) * D
        b_dz += tl.load(
            p_partials + line + (o_row[:, None] * D + o_d[None, :]), mask=m_row[:, None], other=0.0
        )
    b_w = tl.load(p_one_minus_p + o_row, mask=m_row, other=0.0) + tl.load(
        p_one_minus_p + o_positive, mask=m_row, other=0.0
    )
    o_z = (row0 + o_positive)[:, None] * D + o_d[None, :]
    b_dz -= (b_w * WEIGHT_SCALE)[:, None] * tl.load(p_z + o_z, mask=m_row[:, None], other=0.0).to(tl.float32)
    b_dz *= factor * tl.load(p_grad)
    o_z = (row0 + o_row)[:, None] * D + o_d[None, :]
    b_z = tl.load(p_z + o_z, mask=m_row[:, None], other=0.0).to(tl.float32)
    b_inv = tl.load(p_inv_norms + o_row, mask=m_row, other=0.0)
    # a norm that is kept at EPS does not depend on h: z = h/EPS, and dh = dz/EPS
    b_along = tl.where(b_inv < 1.0 / EPS, tl.sum(b_dz * b_z, axis=1), 0.0)
    b_dz -= b_along[:, None] * b_z
    b_dz *= b_inv[:, None]
    o_h = o_row.to(tl.int64)[:, None] * WIDTH + o_d[None, :]
    tl.store(p_dh + o_h, b_dz.to(p_dh.dtype.element_ty), mask=m_row[:, None] & (o_d < WIDTH)[None, :])
