"""Crop, antialiased resize and flip on a GPU, from a decoded set that stays there: one Triton kernel.

Semantics are torchvision's `resized_crop(…, antialias=True)` in float, rounded half to even: a triangle filter
as wide as a source pixel or a result pixel, whichever is larger, cut off at the box and normalised.  An
enlargement takes 2 × 2 taps, a reduction by s about (2s + 1)².  The set is read at any byte (a box starts
anywhere, a pixel is three bytes), so reads are single bytes out of the L1 cache; writes are eight pixels wide.

Shape letters: N images of the set, V views per image, B images of the batch, S the size of a view.
"""

# mypy: disable-error-code="no-untyped-def"
# (Triton takes the types of a kernel's arguments from the launch)

import torch

from pipelines.ops.rgb_gpu import RUN, store_rgb, tl, triton


@triton.jit(do_not_specialize=["num_images"])
def crop_kernel(
    p_set,  # uint8: the pixels of all images
    p_offsets,  # int64 [N]: first byte of each image; None in a uniform set
    p_widths,  # int32 [N]; None in a uniform set
    p_indices,  # int64 [(steps,) B]
    p_boxes,  # int32 [(steps,) V, B, 4]
    p_flips,  # uint8 [(steps,) V, B]
    p_step,  # int64 [1] or None
    p_out,  # uint8 [V, B, SIZE, SIZE, 3]
    num_images,  # B
    num_views,  # V·B
    uniform_bytes,  # of an image of a uniform set
    uniform_width,
    SIZE: tl.constexpr,
    STRIPS: tl.constexpr,
    RUNS: tl.constexpr,
    WIDE: tl.constexpr,  # SIZE is a multiple of 8
):
    RUNS_PER_ROW: tl.constexpr = (SIZE + 7) // 8
    i_view = tl.program_id(0) // STRIPS
    i_image = i_view % num_images
    if p_step is not None:
        step = tl.load(p_step).to(tl.int64)
        p_indices += step * num_images
        p_boxes += step * num_views * 4
        p_flips += step * num_views
    index = tl.load(p_indices + i_image)
    if p_offsets is None:
        p_image = p_set + index * uniform_bytes
        width = uniform_width
    else:
        p_image = p_set + tl.load(p_offsets + index)
        width = tl.load(p_widths + index)
    top = tl.load(p_boxes + i_view * 4)
    left = tl.load(p_boxes + i_view * 4 + 1)
    box_height = tl.load(p_boxes + i_view * 4 + 2)
    box_width = tl.load(p_boxes + i_view * 4 + 3)
    flip = tl.load(p_flips + i_view)

    # a run is eight pixels of one row of the result
    o_run = tl.program_id(0) % STRIPS * RUNS + tl.arange(0, RUNS)
    i_row = o_run // RUNS_PER_ROW
    i_column = o_run % RUNS_PER_ROW * 8
    num_valid = tl.where(i_row < SIZE, SIZE - i_column, 0)
    y = tl.minimum(i_row, SIZE - 1)[:, None]
    x = tl.minimum(i_column[:, None] + tl.arange(0, 8)[None, :], SIZE - 1)
    x = tl.where(flip != 0, SIZE - 1 - x, x)
    y_center, y_first, y_taps, y_rate = _window(y, box_height, SIZE)
    x_center, x_first, x_taps, x_rate = _window(x, box_width, SIZE)

    p_image += (top * width + left) * 3
    r = tl.zeros([RUNS, 8], tl.float32)
    g = tl.zeros([RUNS, 8], tl.float32)
    b = tl.zeros([RUNS, 8], tl.float32)
    total = tl.zeros([RUNS, 8], tl.float32)
    for i_x in range(x_taps):
        x_source = x_first + i_x
        x_weight = _triangle(x_source, x_center, x_rate, box_width)
        for i_y in range(y_taps):
            y_source = y_first + i_y
            weight = x_weight * _triangle(y_source, y_center, y_rate, box_height)
            p_pixel = p_image + (y_source * width + x_source) * 3
            m_pixel = weight > 0
            r += weight * tl.load(p_pixel, mask=m_pixel, other=0).to(tl.float32)
            g += weight * tl.load(p_pixel + 1, mask=m_pixel, other=0).to(tl.float32)
            b += weight * tl.load(p_pixel + 2, mask=m_pixel, other=0).to(tl.float32)
            total += weight

    p_view = p_out + i_view.to(tl.int64) * (SIZE * SIZE * 3)
    o_first = i_row * SIZE + i_column
    store_rgb(p_view, o_first, num_valid, _round(r / total), _round(g / total), _round(b / total), WIDE)


@triton.jit
def _window(position, length, SIZE: tl.constexpr):
    """Return the position of a result pixel's filter along one axis of the box.

    Returns:
        center (source pixels from the box's edge), first tap, number of taps, slope of the triangle.
    """
    scale = length.to(tl.float32) / SIZE
    support = tl.maximum(scale, 1.0)
    center = (position.to(tl.float32) + 0.5) * scale
    first = tl.floor(center - support + 0.5).to(tl.int32)
    # an interval of 2·support holds at most floor + 1 pixel centres; of an enlargement's 3 one has weight 0
    taps = tl.where(scale > 1, tl.floor(2 * support).to(tl.int32) + 1, 2)
    return center, first, taps, 1 / support


@triton.jit
def _triangle(source, center, rate, length):
    """Return the weight of a source pixel; 0 beyond the box."""
    weight = tl.maximum(1 - tl.abs(source.to(tl.float32) + 0.5 - center) * rate, 0.0)
    return tl.where((source >= 0) & (source < length), weight, 0.0)


@triton.jit
def _round(x):
    """Round float in [0, 255] half to even, to uint8: adding 2²³ leaves the rounded number in the low bits."""
    return (x + 8388608.0).to(tl.int32, bitcast=True).to(tl.uint8)


def crop_resize(
    images: torch.Tensor,
    indices: torch.Tensor,
    box: torch.Tensor,
    flip: torch.Tensor,
    size: int,
    *,
    offsets: torch.Tensor | None = None,
    widths: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
    step: torch.Tensor | None = None,
) -> torch.Tensor:
    """Crop, resize with antialiasing and flip images of a set that lies on a GPU.

    One launch on the current stream, without synchronisation, so tensors on the device are not checked: every
    index must be in the set and every box in its image.  In a captured CUDA graph pass the tables of all steps
    and their counter, as in `pipelines.ops.augment.gpu.augment`.

    >>> crops = crop_resize(images, indices, box, flip, size=32)                           # doctest: +SKIP

    Args:
        images: the set: uint8 [N, h, w, 3], or 1-D, image after image, with `offsets` and `widths`.
        indices: int64 [B]: images of the batch.
        box: int32 [V, B, 4]: top, left, height, width, pixels of the source image.
        flip: bool [V, B]: mirror the resized crop left to right.
        size: S, pixels.
        offsets: int64 [N]: first byte of each image of a 1-D set.
        widths: int32 [N]: width of each image of a 1-D set, pixels.
        out: uint8 [V, B, S, S, 3] to write into; None makes one.
        step: int64 [1]; indices, box and flip then have a leading dimension of steps, and this is the one used.

    Returns:
        uint8 [V, B, S, S, 3] on the set's device.

    Raises:
        ValueError: tensors of other shapes, types or devices than these.
    """
    steps = box.shape[:-3]
    views, batch = box.shape[-3:-1]
    device = images.device

    def check(name: str, tensor: torch.Tensor | None, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
        good = tensor is not None and tensor.shape == shape and tensor.dtype == dtype
        if tensor is None or not good or tensor.device != device or not tensor.is_contiguous():
            got = "None" if tensor is None else f"{tensor.dtype} {list(tensor.shape)} on {tensor.device}"
            raise ValueError(f"{name} must be contiguous {dtype} {list(shape)} on {device}, got {got}")

    if len(steps) != (step is not None):
        raise ValueError(f"box must be [V, B, 4], or [steps, V, B, 4] with a step, got {list(box.shape)}")
    check("indices", indices, torch.int64, (*steps, batch))
    check("box", box, torch.int32, (*steps, views, batch, 4))
    check("flip", flip, torch.bool, (*steps, views, batch))
    if step is not None:
        check("step", step, torch.int64, (1,))
    if images.ndim == 4:
        check("images", images, torch.uint8, (*images.shape[:3], 3))
        offsets = widths = None
        uniform_bytes, uniform_width = images[0].numel(), images.shape[2]
    else:
        check("images", images, torch.uint8, (images.numel(),))
        length = 0 if offsets is None else len(offsets)
        check("offsets", offsets, torch.int64, (length,))
        check("widths", widths, torch.int32, (length,))
        uniform_bytes = uniform_width = 0
    if out is None:
        out = torch.empty(views, batch, size, size, 3, dtype=torch.uint8, device=device)
    check("out", out, torch.uint8, (views, batch, size, size, 3))

    runs, strips = row_strips(size)
    with torch.cuda.device_of(images):
        crop_kernel[(views * batch * strips,)](
            images, offsets, widths, indices, box, flip.view(torch.uint8), step, out,
            batch, views * batch, uniform_bytes, uniform_width,
            SIZE=size, STRIPS=strips, RUNS=runs, WIDE=size % 8 == 0,
            num_warps=runs // 32, enable_fp_fusion=True,
        )  # fmt: skip
    return out


def row_strips(size: int) -> tuple[int, int]:
    """Return the runs of eight pixels of a row in a program, one a thread, and the programs in a view."""
    all_runs = size * triton.cdiv(size, RUN)
    runs = min(max(triton.next_power_of_2(all_runs), 32), 128)
    return runs, triton.cdiv(all_runs, runs)
