"""Antialiased crop and resize of uint8 RGB images on the CPU: fixed point, SIMD, no GIL (numba and LLVM).

A view is made in blocks of 16 output rows, one row per SIMD lane of 16-bit words:

    source rows ─vertical─▶ 16 rows ─transpose─▶ columns, 16 rows side by side ─horizontal─▶ bytes ─transpose─▶ out

Both passes are then sums of `words · weight >> 16` over whole registers (one multiply and one add per tap and 16
values on any CPU), whereas a horizontal pass over interleaved RGB would have to shuffle every pixel it reads.

Words carry 8 fractional bits between the passes.  A product is truncated, not rounded: a pass loses half a unit per tap
on average, which is added beforehand.  The result is within 1 gray level of torchvision's float path, and differs
from it in about 1 value of 300.

Everything is in this one file because numba's cache does not notice an edit in a callee of another file.
"""

from typing import Any

import numba.extending
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import models, register_model

from pipelines.system.jit import njit

LANES = 16
"""Words of a register, and rows of a block."""
CHUNK = 64
"""Source bytes of a row that the vertical pass processes at once."""
MAX_TAPS = 64
"""Maximum taps in fixed point; longer sums (images 32 times larger than the view) would lose too much by truncation and
take the scalar path."""

# --- A register of 16 words, as a numba type whose values live in one LLVM vector ---

# numba's type stub asks the caller for the typing context, which is numba's own to give
intrinsic: Any = numba.extending.intrinsic


class _Words(types.Type):
    """uint16 [16] in a register."""


_WORDS = _Words("words")
_BIT16, _BIT32 = ir.IntType(16), ir.IntType(32)
_VECTOR8, _VECTOR16, _VECTOR32 = (ir.VectorType(ir.IntType(bits), LANES) for bits in (8, 16, 32))


@register_model(_Words)
class _WordsModel(models.PrimitiveModel):
    def __init__(self, manager, kind):
        super().__init__(manager, kind, _VECTOR16)


def _all(number, vector=_VECTOR16):
    return ir.Constant(vector, [number] * LANES)


def _broadcast(builder, word):
    first = builder.insert_element(ir.Constant(_VECTOR16, ir.Undefined), word, ir.Constant(_BIT32, 0))
    return builder.shuffle_vector(first, first, _all(0, _VECTOR32))


def _address(context, builder, kind, array, index, vector):
    data = context.make_array(kind)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), vector.as_pointer())


@intrinsic
def _splat(typingctx, word):
    """All 16 words equal to `word`."""
    return _WORDS(types.uint16), lambda context, builder, sig, args: _broadcast(builder, args[0])


@intrinsic
def _load(typingctx, array, index):
    """Load the 32 bytes from array[index] on.  Unchecked, like all accesses of this section."""

    def codegen(context, builder, sig, args):
        return builder.load(_address(context, builder, sig.args[0], args[0], args[1], _VECTOR16), align=1)

    return _WORDS(array, types.intp), codegen


@intrinsic
def _store(typingctx, array, index, words):
    def codegen(context, builder, sig, args):
        builder.store(args[2], _address(context, builder, sig.args[0], args[0], args[1], _VECTOR16), align=2)

    return types.void(array, types.intp, words), codegen


@intrinsic
def _store_high_bytes(typingctx, array, index, words):
    def codegen(context, builder, sig, args):
        high = builder.trunc(builder.lshr(args[2], _all(8)), _VECTOR8)
        builder.store(high, _address(context, builder, sig.args[0], args[0], args[1], _VECTOR8), align=1)

    return types.void(array, types.intp, words), codegen


@intrinsic
def _even_bytes(typingctx, words):
    """Bytes 0, 2, 4, … of a little-endian register, each times 256."""
    return words(words), lambda context, builder, sig, args: builder.shl(args[0], _all(8))


@intrinsic
def _odd_bytes(typingctx, words):
    """Bytes 1, 3, 5, …, each times 256."""
    return words(words), lambda context, builder, sig, args: builder.and_(args[0], _all(0xFF00))


@intrinsic
def _add_product(typingctx, total, words, weight):
    """total + (words · weight >> 16): LLVM knows the multiplication that yields the upper half."""

    def codegen(context, builder, sig, args):
        factors = (builder.zext(factor, _VECTOR32) for factor in (args[1], _broadcast(builder, args[2])))
        upper = builder.lshr(builder.mul(*factors), _all(16, _VECTOR32))
        return builder.add(args[0], builder.trunc(upper, _VECTOR16))

    return _WORDS(total, words, types.uint16), codegen


@intrinsic
def _transpose(typingctx, source, start, step, target, to, to_step):
    """target[to + j·to_step + i] = source[start + i·step + j] for i, j < 16; uint8 or uint16 arrays.

    Interleaving rows i and i + n/2 log₂(n) times transposes n rows.  It is done within spans of 128 bits, the
    only interleaving that every CPU has as one instruction; words then join the halves of two groups of rows.
    """

    def codegen(context, builder, sig, args):
        bits = sig.args[0].dtype.bitwidth
        vector, span = ir.VectorType(ir.IntType(bits), LANES), 128 // bits

        def shuffle(a, b, numbers):
            return builder.shuffle_vector(a, b, ir.Constant(_VECTOR32, numbers))

        def interleave(a, b, upper):
            within = [upper * span // 2 + i // 2 + LANES * (i % 2) for i in range(span)]
            return shuffle(a, b, [base + i for base in range(0, LANES, span) for i in within])

        rows, index = [], args[1]
        for _ in range(LANES):
            rows.append(
                builder.load(_address(context, builder, sig.args[0], args[0], index, vector), align=1)
            )
            index = builder.add(index, args[2])
        groups = [rows[i : i + span] for i in range(0, LANES, span)]
        for _ in range(span.bit_length() - 1):
            groups = [[interleave(g[i // 2], g[(i + span) // 2], i % 2) for i in range(span)] for g in groups]
        rows = groups[0]
        if span < LANES:
            halves = [[*range(i, i + 8), *range(i + LANES, i + LANES + 8)] for i in (0, 8)]
            rows = [shuffle(a, b, half) for half in halves for a, b in zip(*groups, strict=True)]
        index = args[4]
        for row in rows:
            builder.store(row, _address(context, builder, sig.args[3], args[3], index, vector), align=1)
            index = builder.add(index, args[5])

    i = types.intp
    return types.void(source, i, i, target, i, i), codegen


# --- The resize ---


@njit(nogil=True, cache=True)
def _weights(size, first, weights):
    """torch's antialiased bilinear weights: a triangle of radius max(scale, 1) about each output pixel's centre.

    first int32 [n]: the first source pixel of each of the n output pixels; weights float64 [taps + 1, n]: the
    taps from there on, sum 1; the last row is working memory.
    """
    taps, n = weights.shape[0] - 1, weights.shape[1]
    scale = size / n
    radius = max(scale, 1.0)
    slope = 1.0 / radius
    total = weights[taps]
    for i in range(n):
        total[i] = 0.0
        first[i] = max(min(int(scale * (i + 0.5) - radius + 0.5), size - taps), 0)
    for k in range(taps):
        row = weights[k]
        for i in range(n):
            pixel = first[i] + k
            near = max(0.0, 1.0 - abs(pixel + 0.5 - scale * (i + 0.5)) * slope)
            row[i] = near if pixel < size else 0.0
            total[i] += row[i]
    for i in range(n):
        total[i] = 1.0 / total[i]
    for k in range(taps):
        row = weights[k]
        for i in range(n):
            row[i] *= total[i]


@njit(nogil=True, cache=True)
def _to_words(weights, words):
    """Weights in units of 2⁻¹⁶, uint16 [taps, n]; 1 becomes 65535 / 65536."""
    for k in range(words.shape[0]):
        row, to = weights[k], words[k]
        for i in range(to.size):
            to[i] = np.int32(min(row[i] * 65536.0 + 0.5, 65535.0))


@njit(nogil=True, cache=True)
def _vertical(source, start, stride, num_bytes, last, first, weights, bias, rows, columns):
    """Compute 16 output rows, beginning with those of first[0] and weights[:, 0], into columns[CHUNK + byte, row].

    The last chunk of a row slides to the left, so that no load passes the end of `source`:

        row     |--------------------------------------------|
        chunks  |------CHUNK-----|------CHUNK-----|
                                   |------CHUNK-----|   begins at min(chunk, last)

    `last` is the offset at which a chunk of the box's last row ends with the image; it may be negative, but
    start + last is not, since a row of the image is at least CHUNK bytes wide.
    """
    for chunk in range(0, num_bytes, CHUNK):
        chunk = min(chunk, last)
        for r in range(LANES):
            at = start + first[r] * stride + chunk
            even0 = odd0 = even1 = odd1 = _splat(bias)
            for k in range(weights.shape[0]):
                weight = weights[k, r]
                pixels0, pixels1 = _load(source, at), _load(source, at + CHUNK // 2)
                even0 = _add_product(even0, _even_bytes(pixels0), weight)
                odd0 = _add_product(odd0, _odd_bytes(pixels0), weight)
                even1 = _add_product(even1, _even_bytes(pixels1), weight)
                odd1 = _add_product(odd1, _odd_bytes(pixels1), weight)
                at += stride
            _store(rows, r * CHUNK, even0)
            _store(rows, r * CHUNK + 16, odd0)
            _store(rows, r * CHUNK + 32, even1)
            _store(rows, r * CHUNK + 48, odd1)
        to = (CHUNK + chunk) * LANES
        for quarter in range(4):
            column = to + (quarter // 2 * CHUNK // 2 + quarter % 2) * LANES
            _transpose(rows, quarter * LANES, CHUNK, columns, column, 2 * LANES)


@njit(nogil=True, cache=True)
def _horizontal(columns, first, weights, bias, to, to_step, pixels):
    """Compute all output columns of the block; input and output have the layout [column, channel, row]."""
    pixel = 3 * LANES
    for x in range(first.size):
        at = CHUNK * LANES + first[x] * pixel
        red = green = blue = _splat(bias)
        for k in range(weights.shape[0]):
            weight = weights[k, x]
            red = _add_product(red, _load(columns, at), weight)
            green = _add_product(green, _load(columns, at + LANES), weight)
            blue = _add_product(blue, _load(columns, at + 2 * LANES), weight)
            at += pixel
        _store_high_bytes(pixels, to, red)
        _store_high_bytes(pixels, to + LANES, green)
        _store_high_bytes(pixels, to + 2 * LANES, blue)
        to += to_step


@njit(nogil=True, cache=True)
def _crop_scalar(image, top, left, height, width, flip, first_y, weights_y, first_x, weights_x, row, out):
    """Scalar float64 fallback: sources under 64 bytes wide, outputs under 16 rows or columns, more than 64 taps."""
    for y in range(out.shape[0]):
        row[:] = 0.0
        for k in range(min(weights_y.shape[0] - 1, height)):
            source = image[top + first_y[y] + k, left : left + width].reshape(3 * width)
            for i in range(row.size):
                row[i] += weights_y[k, y] * source[i]
        for x in range(out.shape[1]):
            for channel in range(3):
                total = 0.5
                for k in range(min(weights_x.shape[0] - 1, width)):
                    total += weights_x[k, x] * row[3 * (first_x[x] + k) + channel]
                out[y, out.shape[1] - 1 - x if flip else x, channel] = int(total)


@njit(nogil=True, cache=True)
def scratch_bytes(height, width, out_height, out_width):
    """Return the bytes of working memory for cropping an image of at most height × width."""
    columns = 2 * LANES * (3 * width + 2 * CHUNK)
    buffers = 2 * LANES * CHUNK + 3 * LANES * out_width
    tables = 20 * (height + width) + 42 * (out_height + out_width)  # taps · n ≤ 2 · size + 3 · n
    return columns + buffers + tables + 10 * 64


@njit(nogil=True, cache=True)
def _carve(scratch, at, num_bytes):
    """Return the next bytes of the scratch, and the offset of the rest, a multiple of 64 (a cache line) further."""
    return scratch[at : at + num_bytes], at + (num_bytes + 63) // 64 * 64


@njit(nogil=True, cache=True)
def _axis(size, n, scratch, at):
    """Return the tables of one axis, filled by `_weights` and `_to_words`, and the offset of the rest."""
    taps = int(np.ceil(2 * max(size / n, 1.0)))
    memory, at = _carve(scratch, at, 8 * (taps + 1) * n)
    weights = memory.view(np.float64).reshape(taps + 1, n)
    memory, at = _carve(scratch, at, 2 * taps * n)
    words = memory.view(np.uint16).reshape(taps, n)
    memory, at = _carve(scratch, at, 4 * n)
    first = memory.view(np.int32)
    _weights(size, first, weights)
    return first, weights, words, at


@njit(nogil=True, cache=True)
def crop_resize(image, top, left, height, width, flip, out, scratch):
    """Crop one view into out uint8 [H, W, 3], whose rows are contiguous; for the other arguments see `crop_rows`."""
    out_height, out_width = out.shape[0], out.shape[1]
    if top < 0 or left < 0 or height < 1 or width < 1:
        raise ValueError("a crop box has a negative corner or no area")
    if top + height > image.shape[0] or left + width > image.shape[1]:
        raise ValueError("a crop box reaches beyond its image")
    if out.strides[0] != 3 * out_width or out.strides[1] != 3 or out.strides[2] != 1 or out.shape[2] != 3:
        raise ValueError("crops must be written to contiguous views [H, W, 3]")
    if scratch.size < scratch_bytes(image.shape[0], image.shape[1], out_height, out_width):
        raise ValueError("the scratch of the crop is smaller than scratch_bytes() of the image and the view")

    first_y, weights_y, words_y, at = _axis(height, out_height, scratch, -scratch.ctypes.data % 64)
    first_x, weights_x, words_x, at = _axis(width, out_width, scratch, at)
    memory, at = _carve(scratch, at, 2 * LANES * (3 * width + 2 * CHUNK))
    taps = max(words_x.shape[0], words_y.shape[0])
    small = 3 * image.shape[1] < CHUNK or out_height < LANES or 3 * out_width < LANES
    if small or taps > MAX_TAPS or height < words_y.shape[0]:
        row = memory.view(np.float64)[: 3 * width]
        _crop_scalar(image, top, left, height, width, flip, first_y, weights_y, first_x, weights_x, row, out)
        return
    columns = memory.view(np.uint16)
    memory, at = _carve(scratch, at, 2 * LANES * CHUNK)
    rows = memory.view(np.uint16)
    pixels, at = _carve(scratch, at, 3 * LANES * out_width)
    _to_words(weights_y, words_y)
    _to_words(weights_x, words_x)

    source = image.reshape(image.size)
    stride = 3 * image.shape[1]
    start = top * stride + 3 * left
    last = image.size - CHUNK - (start + (height - 1) * stride)
    bias_y = np.uint16(max(height / out_height, 1.0) + 0.5)  # half a unit for each of 2 · radius taps
    bias_x = np.uint16(max(width / out_width, 1.0) + 128.5)  # and half a gray level, to round
    to, to_step = (3 * LANES * (out_width - 1), -3 * LANES) if flip else (0, 3 * LANES)
    for y in range(0, out_height, LANES):
        y = min(y, out_height - LANES)  # the last blocks may overlap, here and below
        _vertical(source, start, stride, 3 * width, last, first_y[y:], words_y[:, y:], bias_y, rows, columns)
        _horizontal(columns, first_x, words_x, bias_x, to, to_step, pixels)
        for column in range(0, 3 * out_width, LANES):
            column = min(column, 3 * out_width - LANES)
            _transpose(pixels, column * LANES, LANES, out, 3 * y * out_width + column, 3 * out_width)


@njit(nogil=True, cache=True)
def crop_rows(low, high, windows, places, boxes, flips, pixels, starts, out, first, scratch):
    """Crop, resize and flip all views of rows [low, high) of a batch: torchvision's antialiased `resized_crop`.

    May be called from many threads at once and from other numba functions; allocates nothing.

    Args:
        low, high: the rows.
        windows: int32 [N, 4]: top, left, height, width of the parts of the images that are decoded, in pixels.
        places: int64 [high − low]: row of `windows` for each of these rows.
        boxes: int32 [V, B, 4]: top, left, height, width in pixels of the image.
        flips: bool [V, B]: mirror the resized crop left to right.
        pixels: uint8, flat: memory that the decoded windows [h, w, 3] lie in.
        starts: int64 [high − low]: where in `pixels` the window of each of these rows begins.
        out: uint8 [V, …, H, W, 3], contiguous; `out[:, first]` and the following are written.
        first: where in `out` row `low` goes.
        scratch: uint8 [scratch_bytes(h, w, H, W)] or more for the largest of these windows; one per thread.

    Raises:
        ValueError: a box is not inside its window, a window not inside of `pixels`, a view not contiguous, or
            the scratch too small.

    >>> pixels, windows = np.full(300 * 400 * 3, 7, np.uint8), np.array([[0, 0, 300, 400]], np.int32)
    >>> boxes, flips = np.array([[[10, 20, 200, 250]]], np.int32), np.array([[True]])
    >>> out, scratch = np.empty((1, 1, 224, 224, 3), np.uint8), np.empty(scratch_bytes(300, 400, 224, 224), np.uint8)
    >>> zero = np.zeros(1, np.int64)
    >>> crop_rows(0, 1, windows, zero, boxes, flips, pixels, zero, out, 0, scratch)
    >>> int(out.min()), int(out.max())
    (7, 7)
    """
    if boxes.shape[0] != out.shape[0] or flips.shape[0] != out.shape[0]:
        raise ValueError("crop_rows needs as many boxes and flips as views")
    for row in range(low, high):
        window = windows[places[row - low]]
        height, width = np.int64(window[2]), np.int64(window[3])
        start = starts[row - low]
        if start < 0 or start + 3 * height * width > pixels.size:
            raise ValueError("a window reaches beyond the memory of its pixels")
        image = pixels[start : start + 3 * height * width].reshape(height, width, 3)
        for v in range(out.shape[0]):
            top, left, box_height, box_width = boxes[v, row]
            view = out[v, first + row - low]
            top, left = top - window[0], left - window[1]
            crop_resize(image, top, left, box_height, box_width, flips[v, row], view, scratch)
