"""The augmentation on a GPU: fused Triton kernels over a table of the drawn numbers.

    crops ─ gray_sums ─▶ one gray mean per view ─ color ─┬─▶ views without blur: normalised, channels last
      uint8                                              └─▶ planes in [0, 1] ─ blur ─▶ the other views

Semantics are those of `pipelines.ops.augment.reference`.  Bytes per view of S² pixels, half precision: 3S² read
twice (the second time partly from the L2 cache), 6S² written, and for blurred views another 6S² written and read.
512 views of 224² take at least 231 MB, which is 77 µs on an H100.

Shape letters: V views per image, B images, N = V·B views, S the size of a view.
"""

import numpy as np
import torch

from pipelines.ops.augment.gpu_blur import MAX_RADIUS, blur_kernel, blur_launch
from pipelines.ops.augment.gpu_color import (
    BLURRED,
    FACTOR,
    GRAY,
    HUE,
    OPERATION,
    SIGMA,
    SLOT,
    SOLARIZE,
    TABLE_COLUMNS,
    color_kernel,
    gray_sums_kernel,
)
from pipelines.ops.rgb_gpu import RUN, triton
from pipelines.views import ViewParams, ViewSpec

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def params_table(params: ViewParams, spec: ViewSpec) -> torch.Tensor:
    """Pack the drawn numbers of a batch into the table that the kernels read, for a single upload.

    Where there is a GPU the table lies in pinned memory, so that `.to(device, non_blocking=True)` returns at
    once.  For a captured graph or a whole epoch on the device, stack the tables of the steps.

    Args:
        params: arrays [V, B, …].
        spec: decides whether views of this size are blurred.

    Returns:
        float32 [V, B, TABLE_COLUMNS] on the host; the columns are named in `gpu_color`.
    """
    views, images = params.flip.shape
    num_views = views * images
    order = params.jitter_order.reshape(num_views, 4).astype(np.int64)
    factors = params.jitter_factors.reshape(num_views, 4).copy()
    factors[:, HUE.value] *= 6  # turns → sixths, one for each edge of the color hexagon
    sigma = params.blur_sigma.reshape(num_views)
    blurred = np.flatnonzero(sigma > 0) if spec.blur_kernel > 1 else np.empty(0, np.int64)

    table = torch.empty(num_views, TABLE_COLUMNS.value, pin_memory=torch.cuda.is_available())
    column = table.numpy().T
    column[OPERATION.value : OPERATION.value + 4] = np.where(params.jitter.reshape(-1, 1), order, -1).T
    column[FACTOR.value : FACTOR.value + 4] = np.take_along_axis(factors, order, axis=1).T
    column[GRAY.value] = params.grayscale.reshape(num_views)
    column[SIGMA.value] = sigma
    column[SOLARIZE.value] = params.solarize.reshape(num_views)
    column[SLOT.value] = column[BLURRED.value] = -1
    column[SLOT.value, blurred] = np.arange(len(blurred))
    column[BLURRED.value, : len(blurred)] = blurred
    return table.view(views, images, TABLE_COLUMNS.value)


def augment(
    crops: torch.Tensor,
    params: ViewParams | torch.Tensor,
    spec: ViewSpec,
    dtype: torch.dtype = torch.bfloat16,
    step: torch.Tensor | None = None,
) -> torch.Tensor:
    """Jitter, gray, blur, solarize and normalise crops on their GPU.

    Three launches on the current stream, no synchronisation.  In a captured CUDA graph pass the table of all
    steps and their counter: the replay reads the rows of the step that the counter holds by then.

    >>> table = torch.stack([params_table(plan.params, spec) for plan in plans]).cuda()    # doctest: +SKIP
    >>> views = augment(crops, table, spec, step=step)                                     # doctest: +SKIP
    >>> step += 1                                                                          # doctest: +SKIP

    Args:
        crops: uint8 [V, B, S, S, 3] on a CUDA device, contiguous.
        params: the drawn numbers, arrays [V, B, …]; or their `params_table`, uploaded.
        spec: gives size, mean and std, and whether there is a blur.
        dtype: bfloat16, float16 or float32.
        step: int64 [1] on the device, with `params` tables [steps, V, B, …]: which of them to use.

    Returns:
        [V, B, 3, S, S] on the crops' device, each view channels last in memory.

    Raises:
        ValueError: crops, table or dtype are of another kind, or the blur has more than 33 taps.
    """
    size, radius = spec.size, spec.blur_kernel // 2
    if crops.dtype != torch.uint8 or crops.shape[2:] != (size, size, 3) or not crops.is_contiguous():
        raise ValueError(
            f"crops must be contiguous uint8 [V, B, {size}, {size}, 3], got {crops.dtype} {list(crops.shape)}"
        )
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be bfloat16, float16 or float32, got {dtype}")
    views, images = crops.shape[:2]
    num_views = views * images
    if isinstance(params, ViewParams):
        num_blurred = int(np.count_nonzero(params.blur_sigma)) if radius else 0
        table = params_table(params, spec).to(crops.device, non_blocking=True)
    else:
        num_blurred = (
            num_views if radius and spec.blur_p > 0 else 0
        )  # an upper bound: only the device knows how many
        table = params
    shape = (*table.shape[: step is not None], views, images, TABLE_COLUMNS.value)
    if table.shape != shape or table.dtype != torch.float32 or table.device != crops.device:
        raise ValueError(
            f"the table must be float32 {list(shape)} on {crops.device}, got {table.dtype} "
            f"{list(table.shape)} on {table.device}"
        )
    if num_blurred and radius > MAX_RADIUS:
        raise ValueError(f"a view of {size} pixels is too large to blur on the GPU; 339 at most, or blur_p=0")

    out = torch.empty(crops.shape, dtype=dtype, device=crops.device)
    plane_dtype = torch.float32 if dtype == torch.float32 else torch.float16
    planes = torch.empty(num_blurred, 3, size, size, dtype=plane_dtype, device=crops.device)
    pixels = size * size
    runs, strips = pixel_strips(size)
    sums = torch.empty(num_views, strips, device=crops.device)
    normalisation = (
        *(1 / std for std in spec.std),
        *(-mean / std for mean, std in zip(spec.mean, spec.std, strict=True)),
    )
    constants = {"PIXELS": pixels, "STRIPS": strips, "RUNS": runs, "WIDE": pixels % 8 == 0}
    # fused multiply-adds are requested, because Triton's default is about to change
    options = {"num_warps": runs // 32, "enable_fp_fusion": True}
    grid = (num_views * strips,)
    with torch.cuda.device_of(crops):
        gray_sums_kernel[grid](crops, table, step, sums, num_views, **constants, **options)
        color_kernel[grid](
            crops, table, step, sums, out, planes, num_views, *normalisation,
            **constants, STRIPS_POW2=triton.next_power_of_2(strips), **options,
        )  # fmt: skip
        if num_blurred:
            launch = blur_launch(plane_dtype, _capability(crops.device))
            blur_kernel[(num_blurred * triton.cdiv(size, launch.rows),)](
                planes, table, step, out, num_views, *normalisation,
                SIZE=size, RADIUS=radius, ROWS=launch.rows, WIDE=size % 8 == 0,
                num_warps=launch.num_warps, num_stages=launch.num_stages, enable_fp_fusion=True,
            )  # fmt: skip
    return out.permute(0, 1, 4, 2, 3)


def pixel_strips(size: int) -> tuple[int, int]:
    """Return the runs of eight pixels in a program of the color kernels, one a thread, and the programs in a view."""
    all_runs = triton.cdiv(size * size, RUN)
    runs = min(max(triton.next_power_of_2(all_runs), 32), 256)
    return runs, triton.cdiv(all_runs, runs)


def _capability(device: torch.device) -> tuple[int, int]:
    """Return the compute capability; an H100's on the CPU, where Triton's interpreter runs the kernels."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (9, 0)
