"""Antialiased crop and resize of uint8 RGB images on the CPU (numba, no GIL)."""

import numpy as np
from numba import njit

CHANNELS = 3


@njit(nogil=True, cache=True)
def scratch_bytes(height, width, out_height, out_width):
    """Bytes of scratch that one thread needs for images of up to height × width."""
    taps_y = 2 * max(height, out_height) + 3 * out_height
    taps_x = 2 * max(width, out_width) + 3 * out_width
    return 8 * (taps_x + taps_y + 3 * width + 2 * (out_height + out_width)) + 4096


@njit(nogil=True, cache=True)
def _weights(size, out_size, first, count, weights, step):
    """torch's `upsample_bilinear2d_aa`: a triangle of radius max(scale, 1) about each output pixel's centre."""
    scale = size / out_size
    radius = max(scale, 1.0)
    for i in range(out_size):
        centre = scale * (i + 0.5)
        low = max(int(centre - radius + 0.5), 0)
        high = min(int(centre + radius + 0.5), size)
        first[i] = low
        count[i] = high - low
        total = 0.0
        for k in range(high - low):
            weight = max(0.0, 1.0 - abs((low + k + 0.5 - centre) / radius))
            weights[i * step + k] = weight
            total += weight
        for k in range(high - low):
            weights[i * step + k] /= total


@njit(nogil=True, cache=True)
def crop_resize(image, top, left, height, width, flip, out, scratch):
    """Resize one box of `image` to the size of `out`; see `crop_views` for the arguments."""
    out_height, out_width = out.shape[0], out.shape[1]
    if top < 0 or left < 0 or height < 1 or width < 1:
        raise ValueError("crop: a box has a negative corner or no area")
    if top + height > image.shape[0] or left + width > image.shape[1]:
        raise ValueError("crop: a box reaches beyond its image")
    if scratch.size < scratch_bytes(image.shape[0], image.shape[1], out_height, out_width):
        raise ValueError("crop: the scratch is smaller than scratch_bytes() of this image and size")
    space = scratch[: scratch.size // 4 * 4].view(np.float32)
    whole = scratch[: scratch.size // 4 * 4].view(np.int32)
    step_y = int(2 * max(height / out_height, 1.0)) + 2
    step_x = int(2 * max(width / out_width, 1.0)) + 2
    a = 0
    first_y, a = whole[a : a + out_height], a + out_height
    count_y, a = whole[a : a + out_height], a + out_height
    first_x, a = whole[a : a + out_width], a + out_width
    count_x, a = whole[a : a + out_width], a + out_width
    weights_y, a = space[a : a + out_height * step_y], a + out_height * step_y
    weights_x, a = space[a : a + out_width * step_x], a + out_width * step_x
    row = space[a : a + CHANNELS * width]
    _weights(height, out_height, first_y, count_y, weights_y, step_y)
    _weights(width, out_width, first_x, count_x, weights_x, step_x)
    for y in range(out_height):
        row[:] = 0.0
        for k in range(count_y[y]):
            source = image[top + first_y[y] + k, left : left + width].reshape(CHANNELS * width)
            weight = weights_y[y * step_y + k]
            for q in range(row.size):
                row[q] += weight * source[q]
        for x in range(out_width):
            red = green = blue = np.float32(0.5)
            for k in range(count_x[x]):
                weight = weights_x[x * step_x + k]
                q = CHANNELS * (first_x[x] + k)
                red += weight * row[q]
                green += weight * row[q + 1]
                blue += weight * row[q + 2]
            to = out_width - 1 - x if flip else x
            out[y, to, 0] = np.uint8(red)
            out[y, to, 1] = np.uint8(green)
            out[y, to, 2] = np.uint8(blue)


@njit("void(u1[:,:,::1], i4[:,:], b1[:], u1[:,:,:,:], u1[::1])", nogil=True, cache=True)
def crop_views(image, boxes, flips, out, scratch):
    """Crop, resize and flip all views of one image, as `resized_crop(…, antialias=True).round()` does.

    Callable from many threads at once, and from other numba functions; allocates nothing.

    Args:
        image: uint8 [h, w, 3], contiguous.
        boxes: int32 [V, 4]: top, left, height, width in pixels of `image`.
        flips: bool [V]: mirror the resized crop left to right.
        out: uint8 [V, H, W, 3], each view contiguous; written.
        scratch: uint8 [≥ scratch_bytes(h, w, H, W)], one per thread.

    Raises:
        ValueError: a box is not inside its image, or the scratch is too small.
    """
    for v in range(boxes.shape[0]):
        crop_resize(image, boxes[v, 0], boxes[v, 1], boxes[v, 2], boxes[v, 3], flips[v], out[v], scratch)
