"""The fused augmentation on a CPU: tables, scratch memory and threads for the numba kernels of `cpu_kernels.py`.

A loader's worker calls `augment_rows` right after the crop, with the crops still in its cache:

    scratch = new_scratch(spec)  # one per thread
    augment_rows(low, high, crops, 0, numbers(params), constants(spec), out, scratch)
"""

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from pipelines.ops.augment.cpu_kernels import ROWS, STRIP, augment_unpacked
from pipelines.ops.augment.tables import Constants, Drawn, Scratch
from pipelines.views import ViewParams, ViewSpec

__all__ = [
    "Constants",
    "Drawn",
    "Scratch",
    "augment",
    "augment_rows",
    "constants",
    "new_scratch",
    "new_views",
    "numbers",
]


def augment_rows(
    low: int,
    high: int,
    crops: np.ndarray,
    first: int,
    drawn: Drawn,
    constants: Constants,
    out: np.ndarray,
    scratch: Scratch,
) -> None:
    """Augment all views of rows [low, high) of a batch, without the GIL: crops[:, first], … → out[:, low], …

    Args:
        low, high: the rows, of `drawn` and `out`.
        crops: uint8 [V, …, H, W, 3], C-contiguous.
        first: position of row `low` in `crops`.
        drawn: the numbers of the views.
        constants: constants of their spec.
        out: float32 [V, B, H, W, 3], C-contiguous.
        scratch: working memory of this thread.

    Raises:
        ValueError: `crops` or `out` has too few views or rows.
    """
    # unpacked: numba takes named tuples of arrays as arguments too, but needs twice as long to look into them
    augment_unpacked(low, high, crops, first, *drawn, *constants, out, *scratch)


def augment(
    crops: np.ndarray | torch.Tensor,
    params: ViewParams,
    spec: ViewSpec,
    dtype: torch.dtype = torch.float32,
    num_threads: int = 1,
) -> torch.Tensor:
    """Jitter, gray, blur and normalise crops by their drawn numbers.

    Within 0.05/255 of `reference.augment` before the normalisation, 0.25/255 where a blur kernel is truncated.

    Args:
        crops: uint8 [V, B, H, W, 3] on the host.
        params: the numbers of these views, arrays [V, B, …].
        spec: gives the blur's kernel size, mean and std.
        dtype: type of the result; the arithmetic is float32.
        num_threads: threads that share the images; the result does not depend on it.

    Returns:
        [V, B, 3, H, W], channels last in memory.
    """
    pixels = np.ascontiguousarray(crops)
    drawn = Drawn(*(np.ascontiguousarray(array) for array in numbers(params)))
    views = new_views(pixels.shape)

    def work(low: int, high: int) -> None:
        augment_rows(low, high, pixels, low, drawn, constants(spec), views, new_scratch(spec))

    bounds = np.linspace(0, pixels.shape[1], num_threads + 1).astype(int).tolist()
    with ThreadPoolExecutor(num_threads) as threads:
        list(threads.map(work, bounds[:-1], bounds[1:]))
    return torch.from_numpy(views).permute(0, 1, 4, 2, 3).to(dtype)


def numbers(params: ViewParams) -> Drawn:
    """Return the drawn numbers in the form that `augment_rows` takes."""
    jitter = params.jitter, params.jitter_order, params.jitter_factors
    return Drawn(*jitter, params.grayscale, params.blur_sigma, params.solarize)


def constants(spec: ViewSpec) -> Constants:
    """Return a spec's constants in the form that `augment_rows` takes."""
    mean, std = np.array(spec.mean), np.array(spec.std)
    return Constants(spec.blur_kernel, (1 / std).astype(np.float32), (-mean / std).astype(np.float32))


def new_scratch(spec: ViewSpec) -> Scratch:
    """Allocate Scratch for views of `spec.size`."""
    radius = spec.blur_kernel // 2
    line = 3 * spec.size + 6 * radius + 64
    image = _aligned(3 * spec.size**2, np.float32)
    return Scratch(
        image=image,
        fixed=image.view(np.uint16),
        strip=_aligned(3 * STRIP, np.float32),
        weights=_aligned(radius + 4, np.uint16),
        offsets=np.empty((2, radius + 4), np.uint64),
        lines=_aligned(ROWS * line, np.uint16),
        blurred=_aligned(ROWS * line, np.uint16),
    )


def new_views(shape: tuple[int, ...]) -> np.ndarray:
    """Allocate uninitialised float32 views, aligned to 64 bytes.

    NumPy allocates them because it asks Linux for huge pages: fresh memory from `torch.empty` costs 147 page faults per
    224-pixel view, which take longer than the augmentation.
    """
    return _aligned(math.prod(shape), np.float32).reshape(shape)


def _aligned(count: int, dtype: type) -> np.ndarray:
    num_bytes = count * np.dtype(dtype).itemsize
    memory = np.empty(num_bytes + 64, np.uint8)
    return memory[-memory.ctypes.data % 64 :][:num_bytes].view(dtype)
