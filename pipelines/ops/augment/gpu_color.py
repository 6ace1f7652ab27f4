"""Color jitter, grayscale, normalisation and the channels-last write: two Triton kernels.

`gray_sums_kernel` evaluates the operations that precede the contrast and sums the gray values (contrast
pulls towards their mean); `color_kernel` applies all of them and writes the view, or, where a blur
follows, the un-normalised planes that `gpu_blur` reads.  Each program takes one strip of one view, so that
expensive and cheap views are balanced over the GPU.

The arithmetic is torchvision's in float32; the kernels take about 40 and 70 instructions per pixel.
"""

# mypy: disable-error-code="no-untyped-def"
# (Triton takes the types of a kernel's arguments from the launch)

from pipelines.ops.rgb_gpu import load_rgb, store_rgb, tl, triton

BRIGHTNESS, CONTRAST, SATURATION, HUE = (tl.constexpr(code) for code in range(4))
"""Operations as `ViewParams.jitter_order` numbers them."""

# Columns of the table that `gpu.params_table` packs, float32
OPERATION = tl.constexpr(0)
"""Columns 0 to 3: the jitter's operations in the order in which they run, −1 for none."""
FACTOR = tl.constexpr(4)
"""Columns 4 to 7: the factor of each operation; for the hue, its shift in sixths of a turn."""
GRAY = tl.constexpr(8)
"""1 or 0."""
SIGMA = tl.constexpr(9)
"""Standard deviation of the blur, pixels."""
SLOT = tl.constexpr(10)
"""Position of this view among the blurred ones, −1 for a view without blur."""
BLURRED = tl.constexpr(11)
"""In row n: number of the n-th blurred view, −1 after the last one."""
SOLARIZE = tl.constexpr(12)
"""Threshold in [0, 1] at or above which values are inverted; infinity: none are."""
TABLE_COLUMNS = tl.constexpr(13)


@triton.jit
def table_row(p_table, p_step, i_view, num_views):
    """Return the pointer to a view's row; in a captured graph, a counter on the device selects the step's table."""
    if p_step is not None:
        p_table += tl.load(p_step).to(tl.int64) * num_views * TABLE_COLUMNS
    return p_table + i_view * TABLE_COLUMNS


@triton.jit(do_not_specialize=["num_views"])
def gray_sums_kernel(
    p_crops,  # uint8 [N, PIXELS, 3]
    p_table,  # float32 [(steps,) N, TABLE_COLUMNS]
    p_step,  # int64 [1] or None
    p_sums,  # float32 [N, STRIPS], written where there is jitter
    num_views,
    PIXELS: tl.constexpr,
    STRIPS: tl.constexpr,
    RUNS: tl.constexpr,
    WIDE: tl.constexpr,
):
    i_view = tl.program_id(0) // STRIPS
    i_strip = tl.program_id(0) % STRIPS
    p_row = table_row(p_table, p_step, i_view, num_views)
    if tl.load(p_row + OPERATION) < 0:
        return
    o_run = i_strip * RUNS + tl.arange(0, RUNS)
    r, g, b = load_rgb(p_crops + i_view.to(tl.int64) * (PIXELS * 3), o_run, PIXELS, WIDE)
    before = True
    for i_step in tl.static_range(4):
        operation = tl.load(p_row + OPERATION + i_step).to(tl.int32)
        before = before & (operation != CONTRAST)
        if before:
            r, g, b = _adjust(r, g, b, operation, tl.load(p_row + FACTOR + i_step), 0.0)
    # pixels beyond the last one are black; the operations before the contrast keep them so, and they add nothing
    total = tl.sum(tl.sum(_gray(r, g, b), axis=1), axis=0)
    tl.store(p_sums + tl.program_id(0), total)


@triton.jit(do_not_specialize=["num_views"])
def color_kernel(
    p_crops,  # uint8 [N, PIXELS, 3]
    p_table,  # float32 [(steps,) N, TABLE_COLUMNS]
    p_step,  # int64 [1] or None
    p_sums,  # float32 [N, STRIPS]
    p_views,  # [N, PIXELS, 3]: normalised, where there is no blur
    p_planes,  # [blurred, 3, PIXELS]: in [0, 1], where there is
    num_views,
    scale_r,  # 1/std
    scale_g,
    scale_b,
    shift_r,  # −mean/std
    shift_g,
    shift_b,
    PIXELS: tl.constexpr,
    STRIPS: tl.constexpr,
    STRIPS_POW2: tl.constexpr,
    RUNS: tl.constexpr,
    WIDE: tl.constexpr,
):
    # backwards, because the crops that gray_sums_kernel read last are still in the L2 cache
    i_view = num_views - 1 - tl.program_id(0) // STRIPS
    i_strip = tl.program_id(0) % STRIPS
    p_row = table_row(p_table, p_step, i_view, num_views)
    o_run = i_strip * RUNS + tl.arange(0, RUNS)
    r, g, b = load_rgb(p_crops + i_view.to(tl.int64) * (PIXELS * 3), o_run, PIXELS, WIDE)

    if tl.load(p_row + OPERATION) >= 0:
        o_strip = tl.arange(0, STRIPS_POW2)
        sums = tl.load(p_sums + i_view * STRIPS + o_strip, mask=o_strip < STRIPS, other=0.0)
        mean = tl.sum(sums, axis=0) * (1 / PIXELS)
        for i_step in tl.static_range(4):
            operation = tl.load(p_row + OPERATION + i_step).to(tl.int32)
            r, g, b = _adjust(r, g, b, operation, tl.load(p_row + FACTOR + i_step), mean)
    if tl.load(p_row + GRAY) > 0:
        r = _gray(r, g, b)
        g = r
        b = r

    slot = tl.load(p_row + SLOT).to(tl.int32)
    if slot < 0:
        p_view = p_views + i_view.to(tl.int64) * (PIXELS * 3)
        threshold = tl.load(p_row + SOLARIZE)
        r = _solarize(r, threshold)
        g = _solarize(g, threshold)
        b = _solarize(b, threshold)
        r = r * scale_r + shift_r
        g = g * scale_g + shift_g
        b = b * scale_b + shift_b
        store_rgb(p_view, o_run * 8, PIXELS - o_run * 8, r, g, b, WIDE)
    else:
        o_pixel = o_run[:, None] * 8 + tl.arange(0, 8)[None, :]
        p_plane = p_planes + slot.to(tl.int64) * (PIXELS * 3) + o_pixel
        m_pixel = (o_run < PIXELS // 8)[:, None] if WIDE else o_pixel < PIXELS
        dtype = p_planes.dtype.element_ty
        tl.store(p_plane, r.to(dtype), mask=m_pixel)
        tl.store(p_plane + PIXELS, g.to(dtype), mask=m_pixel)
        tl.store(p_plane + 2 * PIXELS, b.to(dtype), mask=m_pixel)


@triton.jit
def _gray(r, g, b):
    """torchvision's rgb_to_grayscale."""
    return 0.2989 * r + 0.587 * g + 0.114 * b


@triton.jit
def _adjust(r, g, b, operation, factor, mean):
    """Apply one operation of the jitter, and clamp.

    Brightness, contrast and saturation are x ← factor·x + (1 − factor)·(0, the mean gray, or the pixel's gray).  All
    pixels of a view take the same branches.
    """
    if operation == HUE:
        r, g, b = _shift_hue(r, g, b, factor)
    else:
        rest = 1 - factor
        if operation == SATURATION:
            towards = rest * _gray(r, g, b)
            r = _clamp(factor * r + towards)
            g = _clamp(factor * g + towards)
            b = _clamp(factor * b + towards)
        else:
            target = tl.where(operation == CONTRAST, rest * mean, 0.0)
            r = _clamp(factor * r + target)
            g = _clamp(factor * g + target)
            b = _clamp(factor * b + target)
    return r, g, b


@triton.jit
def _solarize(x, threshold):
    """Invert values at or above the threshold, like torchvision's solarize."""
    return tl.where(x >= threshold, 1 - x, x)


@triton.jit
def _clamp(x):
    return tl.minimum(tl.maximum(x, 0.0), 1.0)  # free: it compiles to a saturating FMA


@triton.jit
def _shift_hue(r, g, b, shift):
    """Shift the hue (RGB → HSV → RGB) without a division and without a branch.

    With V = max and C = V − min, the channel that peaks at hue n is V − C·t(h − n), t the trapezoid of the
    color hexagon (HSV, Smith 1978).  Everything is kept times C, so the hue h = (difference of two channels)/C
    + 0, 2 or 4 needs no quotient: a gray pixel has C = 0 and stays as it is.

    Args:
        r, g, b: [0, 1].
        shift: scalar, sixths of a turn.
    """
    value = tl.maximum(tl.maximum(r, g), b)
    chroma = value - tl.minimum(tl.minimum(r, g), b)
    hue = tl.where(value == r, g - b, tl.where(value == g, 2 * chroma + (b - r), 4 * chroma + (r - g)))
    return (
        value - _trapezoid(hue, chroma, 5 + shift),
        value - _trapezoid(hue, chroma, 3 + shift),
        value - _trapezoid(hue, chroma, 1 + shift),
    )


@triton.jit
def _trapezoid(hue, chroma, phase):
    """Return chroma · clamp(min(k, 4 − k), 0, 1) with k = (hue/chroma + phase) mod 6.

    hue/chroma is in [−1, 5], so with the phase in [0, 6) the sum is in [−1, 11): one period and its
    neighbours, and symmetric about 5.  Hence two absolute values replace the modulo.
    """
    phase = phase - 6 * tl.floor(phase * (1 / 6))
    distance = tl.abs(tl.abs(hue + (phase - 5) * chroma) - 3 * chroma)
    return tl.minimum(tl.maximum(2 * chroma - distance, 0.0), chroma)
