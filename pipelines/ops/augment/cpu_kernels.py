"""The kernels of the CPU augmentation: numba, without the GIL, one view at a time while it is in the cache.

- A strip of STRIP pixels is three planes of float32, which stay in L1; loops over them have no branches.
- Contrast needs the mean gray value, so the operations before it run over all strips first.  Hue needs no division.
- The blur is in 16-bit fixed point, drops taps whose weights vanish, and adds four pairs of taps per sweep.  For the
  blur, a gray view is one plane.

All callees are in this file, because numba's cache does not notice an edit in another one.  Arrays are C-contiguous.
Shape letters: V views per image, B images, H and W the size of a view, n = H·W pixels, C channels.
"""

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from pipelines.ops.augment.tables import Constants, Drawn, Scratch
from pipelines.system.jit import njit

STRIP = 512
"""Pixels per strip: source, planes and target together fit into L1."""
ROWS = 8
"""Rows that the blur processes at a time."""
TAIL = 3e-4
"""Fraction of the blur's weights that may be dropped per direction: at most 0.15/255 of error in both together."""
BLACK, WHITE = 300, 65070
"""0.0 and 1.0 in the blur's fixed point: 254 units per gray level.  465 units of headroom keep rounding errors from
wrapping past 65535.  Every product truncates half a unit on average, which a bias corrects; an exact 0 would not
truncate and come out too bright, hence the offset."""
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)

_ZERO, _ONE, _TWO, _FOUR = (np.float32(value) for value in (0, 1, 2, 4))
_U16, _U32, _U64 = np.uint16, np.uint32, np.uint64
"""Offsets are unsigned: numba wraps negative signed ones around, which blocks the vectoriser."""
_FAST = {"contract", "nsz", "nnan", "ninf"}
"""Allow fused multiply-adds, and ignore NaN, infinity and −0.  Finite results change by a rounding at most."""
_kernel: Any = njit(nogil=True, cache=True)
_fast: Any = njit(nogil=True, cache=True, fastmath=_FAST)
_fast_sum: Any = njit(nogil=True, cache=True, fastmath=_FAST | {"reassoc"})


@_kernel
def augment_unpacked(
    low, high, crops, first,
    jitter, order, factors, gray, sigma, solarize,
    taps, scale, shift,
    out,
    image, fixed, strip, weights, offsets, lines, blurred,
):  # fmt: skip
    """Augment all views of rows [low, high) of a batch; see `cpu.augment_rows`, whose tuples are unpacked here."""
    if out.shape[0] != crops.shape[0] or high > out.shape[1] or first + high - low > crops.shape[1]:
        raise ValueError("augment_rows needs as many views, and room for as many rows, in and out")
    drawn = Drawn(jitter, order, factors, gray, sigma, solarize)
    constants = Constants(taps, scale, shift)
    scratch = Scratch(image, fixed, strip, weights, offsets, lines, blurred)
    n = crops.shape[2] * crops.shape[3]
    for row in range(low, high):
        for v in range(crops.shape[0]):
            target = out[v, row].reshape(3 * n)
            _augment_view(crops[v, first + row - low], v, row, drawn, constants, target, scratch)
            if drawn.solarize[v, row] <= 1:
                _solarize(drawn.solarize[v, row], constants.scale, constants.shift, target)


@_kernel
def _augment_view(crop, v, row, drawn, constants, target, scratch):
    """Augment one view but for solarization: crop uint8 [H, W, 3] → target float32 [3n], by the numbers at [v, row]."""
    n = crop.shape[0] * crop.shape[1]
    jitter, order, factors = drawn.jitter[v, row], drawn.order[v, row], drawn.factors[v, row]
    gray, sigma, scale, shift = drawn.gray[v, row], drawn.sigma[v, row], constants.scale, constants.shift
    source = crop.reshape(3 * n)
    radius = _gaussian(sigma, constants.taps // 2, scratch.weights) if sigma > 0 else 0
    prefix, mean = 0, _ZERO
    if jitter:
        while order[prefix] != CONTRAST:
            prefix += 1
        mean = _before_contrast(source, order[:prefix], factors, scratch.image)

    for start in range(0, n, STRIP):
        stop = min(start + STRIP, n)
        planes, goal = scratch.strip[: 3 * (stop - start)], target[3 * start : 3 * stop]
        if jitter:
            _contrast(np.float32(factors[CONTRAST]), mean, scratch.image[3 * start : 3 * stop], planes)
            for operation in order[prefix + 1 :]:
                _adjust(operation, factors[operation], planes)
        else:
            _load(source[3 * start : 3 * stop], 1.0, planes)
        if gray:
            plane = planes[: stop - start]
            _to_gray(planes)
            if radius:
                _fix_plane(plane, scratch.fixed[start:stop])
            else:
                _store(plane, plane, plane, 0.0, 1.0, scale, shift, goal)
        elif radius:
            _fix_planes(planes, scratch.fixed[3 * start : 3 * stop])
        else:
            _store(*_split(planes), 0.0, 1.0, scale, shift, goal)

    if radius:
        _blur(crop.shape[0], crop.shape[1], gray, radius, scale, shift, target, scratch)


@_kernel
def _before_contrast(source, order, factors, image):
    """Write the jitter before the contrast into `image`; return the mean of its gray values."""
    n = source.size // 3
    bright = order.size > 0 and order[0] == BRIGHTNESS  # a first brightness is applied while loading
    total = 0.0
    for start in range(0, n, STRIP):
        stop = min(start + STRIP, n)
        planes = image[3 * start : 3 * stop]
        _load(source[3 * start : 3 * stop], factors[BRIGHTNESS] if bright else 1.0, planes)
        for operation in order[1 if bright else 0 :]:
            _adjust(operation, factors[operation], planes)
        total += _gray_sum(planes)
    return np.float32(total / n)


@_kernel
def _adjust(operation, factor, planes):
    """Apply one operation of the jitter, except contrast, to a strip in place."""
    if operation == BRIGHTNESS:
        _brightness(np.float32(factor), planes)
    elif operation == SATURATION:
        _saturation(np.float32(factor), planes)
    else:
        _hue(np.float32(6 * (factor % 1.0)), planes)


@_fast
def _clamp(x):
    return min(max(x, _ZERO), _ONE)


@_kernel
def _split(planes):
    n = planes.size // 3
    return planes[:n], planes[n : 2 * n], planes[2 * n :]


@_fast
def _luma(r, g, b):
    return np.float32(0.2989) * r + np.float32(0.587) * g + np.float32(0.114) * b


@_fast
def _load(source, brightness, planes):
    """Load uint8 [3n], interleaved, as planes in [0, 1]."""
    factor = np.float32(brightness / 255)
    r, g, b = _split(planes)
    for q in range(r.size):
        r[q] = min(np.float32(source[3 * q]) * factor, _ONE)
        g[q] = min(np.float32(source[3 * q + 1]) * factor, _ONE)
        b[q] = min(np.float32(source[3 * q + 2]) * factor, _ONE)


@_fast
def _brightness(factor, planes):
    for q in range(planes.size):
        planes[q] = min(planes[q] * factor, _ONE)


@_fast
def _contrast(factor, mean, planes, out):
    """Move values away from or to the mean.  Never in place, because overlapping arrays prevent vectorisation."""
    constant = (_ONE - factor) * mean
    for q in range(planes.size):
        out[q] = _clamp(planes[q] * factor + constant)


@_fast
def _saturation(factor, planes):
    r, g, b = _split(planes)
    rest = _ONE - factor
    for q in range(r.size):
        gray = rest * _luma(r[q], g[q], b[q])
        r[q] = _clamp(r[q] * factor + gray)
        g[q] = _clamp(g[q] * factor + gray)
        b[q] = _clamp(b[q] * factor + gray)


@_fast
def _hue(shift, planes):
    """Turn the hue by shift ∈ [0, 6) sixths of a turn; maximum and minimum stay.

    With chroma c = max − min and t = c · (hue in sixths) ∈ [0, 6c) the channels are
    min + |t − 3c| − c, min + 2c − |t − 2c| and min + 2c − |t − 4c|, each clamped to [min, max].
    Carrying c · hue instead of the hue spares the division, and with it the case c = 0.
    """
    r, g, b = _split(planes)
    if shift < _ONE:
        shift += _FOUR + _TWO  # the hue before the shift is in [−1, 5]: now one subtraction brings it home
    shift_g, shift_b = shift + _TWO, shift + _FOUR
    for q in range(r.size):
        red, green, blue = r[q], g[q], b[q]
        high = max(red, max(green, blue))
        low = min(red, min(green, blue))
        c = high - low
        c2 = c + c
        c3 = c2 + c
        t = shift_g * c + (blue - red) if green == high else shift_b * c + (red - green)
        t = shift * c + (green - blue) if red == high else t
        turned = t - (c3 + c3)
        t = turned if turned >= _ZERO else t
        top = low + c2
        r[q] = min(max(low - c + abs(t - c3), low), high)
        g[q] = min(max(top - abs(t - c2), low), high)
        b[q] = min(max(top - abs(t - (c2 + c2)), low), high)


@_fast_sum
def _gray_sum(planes):
    r, g, b = _split(planes)
    total = _ZERO
    for q in range(r.size):
        total += _luma(r[q], g[q], b[q])
    return float(total)


@_fast
def _to_gray(planes):
    """Write the gray values into the first plane."""
    r, g, b = _split(planes)
    for q in range(r.size):
        r[q] = _luma(r[q], g[q], b[q])


@_fast
def _scale_and_shift(black, white, scale, shift):
    """Return scale and shift of the normalisation for values in which `black` means 0.0 and `white` means 1.0."""
    unit, zero = np.float32(1 / (white - black)), np.float32(black / (white - black))
    shifts = shift[0] - zero * scale[0], shift[1] - zero * scale[1], shift[2] - zero * scale[2]
    return (scale[0] * unit, scale[1] * unit, scale[2] * unit), shifts


@_fast
def _store(r, g, b, black, white, scale, shift, target):
    """Write planes, float32 or fixed point, as normalised values [3n], interleaved."""
    (scale_r, scale_g, scale_b), (shift_r, shift_g, shift_b) = _scale_and_shift(black, white, scale, shift)
    for q in range(r.size):
        target[3 * q] = np.float32(r[q]) * scale_r + shift_r
        target[3 * q + 1] = np.float32(g[q]) * scale_g + shift_g
        target[3 * q + 2] = np.float32(b[q]) * scale_b + shift_b


@_fast
def _store_fixed(row, scale, shift, target):
    """Write fixed-point values as normalised ones, both interleaved [3n]."""
    (scale_r, scale_g, scale_b), (shift_r, shift_g, shift_b) = _scale_and_shift(BLACK, WHITE, scale, shift)
    for q in range(target.size // 3):
        target[3 * q] = np.float32(row[3 * q]) * scale_r + shift_r
        target[3 * q + 1] = np.float32(row[3 * q + 1]) * scale_g + shift_g
        target[3 * q + 2] = np.float32(row[3 * q + 2]) * scale_b + shift_b


@_fast
def _solarize(threshold, scale, shift, target):
    """Invert values at or above the threshold, normalised [3n] in place: 1 − x becomes s + 2·t − (s·x + t)."""
    # a threshold of 0 inverts everything, including values that rounding left below 0
    limit = np.float32(threshold) if threshold > 0 else -_ONE
    for c in range(3):
        lowest, mirror = limit * scale[c] + shift[c], scale[c] + _TWO * shift[c]
        for q in range(c, target.size, 3):
            x = target[q]
            target[q] = mirror - x if x >= lowest else x


@_fast
def _fix(x):
    return _U16(np.int32(x * np.float32(WHITE - BLACK) + np.float32(BLACK + 0.5)))


@_fast
def _fix_plane(plane, fixed):
    for q in range(plane.size):
        fixed[q] = _fix(plane[q])


@_fast
def _fix_planes(planes, fixed):
    """Write planes as fixed-point values [3n], interleaved."""
    r, g, b = _split(planes)
    for q in range(r.size):
        fixed[3 * q] = _fix(r[q])
        fixed[3 * q + 1] = _fix(g[q])
        fixed[3 * q + 2] = _fix(b[q])


@_kernel
def _gaussian(sigma, radius, weights):
    """Write the weights of the centre (0) and of both taps at distance k, in units of 1/65536; return the radius."""
    total = 1.0
    for tap in range(1, radius + 1):
        total += 2 * math.exp(-0.5 * (tap / sigma) ** 2)
    dropped = 0.0
    while radius > 0:
        weight = 2 * math.exp(-0.5 * (radius / sigma) ** 2)
        if dropped + weight > TAIL * total:
            break
        dropped += weight
        radius -= 1
    centre = 65536
    for tap in range(1, radius + 1):
        weight = round(65536 * 2 * math.exp(-0.5 * (tap / sigma) ** 2) / (total - dropped))
        weights[tap] = weight
        centre -= weight
    weights[0] = min(centre, 65535)
    return radius


@_kernel
def _blur(height, width, gray, radius, scale, shift, target, scratch):
    """Blur scratch.fixed [H, W·C] separably, with reflected borders, and write it normalised into target [3n]."""
    fixed, lines, above, below = scratch.fixed, scratch.lines, scratch.offsets[0], scratch.offsets[1]
    channels = 1 if gray else 3
    length = width * channels
    begin = (radius * channels + 31) // 32 * 32  # where a line's pixels begin, after the reflected ones
    end = begin + length
    pitch = (end + radius * channels + 31) // 32 * 32
    # ROWS rows at a time: reading values right after they were written would stall
    for top in range(0, height, ROWS):
        rows = min(ROWS, height - top)
        for k in range(rows):
            y = top + k
            for tap in range(1, radius + 1):
                above[tap] = abs(y - tap) * length
                below[tap] = (height - 1 - abs(height - 1 - y - tap)) * length
            out = lines[k * pitch + begin : k * pitch + end]
            _weighted_sum(fixed, _U64(y * length), above, below, scratch.weights, radius, out)
        for k in range(rows):
            line = lines[k * pitch : (k + 1) * pitch]
            for tap in range(1, radius + 1):
                for channel in range(channels):
                    line[begin - tap * channels + channel] = line[begin + tap * channels + channel]
                    line[end + (tap - 1) * channels + channel] = line[end - (tap + 1) * channels + channel]
        for tap in range(1, radius + 1):
            above[tap], below[tap] = begin - tap * channels, begin + tap * channels
        out = scratch.blurred[: (rows - 1) * pitch + length]  # all rows in one sweep
        _weighted_sum(lines, _U64(begin), above, below, scratch.weights, radius, out)
        for k in range(rows):
            row = scratch.blurred[k * pitch : k * pitch + length]
            goal = target[3 * (top + k) * width : 3 * (top + k + 1) * width]
            if gray:
                _store(row, row, row, BLACK, WHITE, scale, shift, goal)
            else:
                _store_fixed(row, scale, shift, goal)


@_kernel
def _weighted_sum(x, centre, above, below, weights, radius, out):
    """Write out = w₀ x[centre …] + Σ w_k (x[above_k …] + x[below_k …]) / 2, summed over k = 1 … radius."""
    near = radius % 4
    _first_pairs(x, centre, above, below, weights, near, _U16((radius + 1) // 2), out)
    for done in range(near, radius, 4):
        _four_pairs(x, above[done:], below[done:], weights[done:], out)


def _fixed_product(typing, x, weight):
    """Return x · weight / 65536 of two uint16, rounded down; (x · weight) >> 16 would be vectorised in 32 bits."""

    def generate(context, builder, signature, arguments):
        i16, i32 = ir.IntType(16), ir.IntType(32)
        function = ir.FunctionType(i16, [i16, i16, i32])
        product = builder.module.declare_intrinsic("llvm.umul.fix", [i16], function)
        return builder.call(product, [*arguments, i32(16)])

    return types.uint16(types.uint16, types.uint16), generate


_scaled: Any = intrinsic(_fixed_product)


@_kernel
def _pair(x, y, weight):
    """Return the weighted mean of x and y."""
    return _scaled(_U16((_U32(x) + _U32(y) + _U32(1)) >> _U32(1)), weight)


@_kernel
def _first_pairs(x, centre, above, below, w, pairs, bias, out):
    """Add the centre and the first 0 … 3 pairs; `bias` compensates for the rounding down of all products."""
    w0, w1, w2, w3 = w[0], w[1], w[2], w[3]
    a1, a2, a3, b1, b2, b3 = above[1], above[2], above[3], below[1], below[2], below[3]
    if pairs == 0:
        for i in range(out.size):
            q = _U64(i)
            out[q] = _scaled(x[centre + q], w0) + bias
    elif pairs == 1:
        for i in range(out.size):
            q = _U64(i)
            out[q] = _scaled(x[centre + q], w0) + bias + _pair(x[a1 + q], x[b1 + q], w1)
    elif pairs == 2:
        for i in range(out.size):
            q = _U64(i)
            near = _scaled(x[centre + q], w0) + bias + _pair(x[a1 + q], x[b1 + q], w1)
            out[q] = near + _pair(x[a2 + q], x[b2 + q], w2)
    else:
        for i in range(out.size):
            q = _U64(i)
            near = _scaled(x[centre + q], w0) + bias + _pair(x[a1 + q], x[b1 + q], w1)
            out[q] = near + _pair(x[a2 + q], x[b2 + q], w2) + _pair(x[a3 + q], x[b3 + q], w3)


@_kernel
def _four_pairs(x, above, below, w, out):
    """Add pairs 1 … 4."""
    w1, w2, w3, w4 = w[1], w[2], w[3], w[4]
    a1, a2, a3, a4 = above[1], above[2], above[3], above[4]
    b1, b2, b3, b4 = below[1], below[2], below[3], below[4]
    for i in range(out.size):
        q = _U64(i)
        near = _pair(x[a1 + q], x[b1 + q], w1) + _pair(x[a2 + q], x[b2 + q], w2)
        out[q] += near + _pair(x[a3 + q], x[b3 + q], w3) + _pair(x[a4 + q], x[b4 + q], w4)
