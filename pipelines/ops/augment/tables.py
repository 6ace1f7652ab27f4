"""Arguments of the CPU augmentation's kernels, in groups: drawn numbers, constants, working memory."""

from typing import NamedTuple

import numpy as np


class Drawn(NamedTuple):
    """Fields of ViewParams, arrays [V, B, …], C-contiguous."""

    jitter: np.ndarray
    order: np.ndarray
    factors: np.ndarray
    gray: np.ndarray
    sigma: np.ndarray
    solarize: np.ndarray


class Constants(NamedTuple):
    """Constants of all views of one size."""

    taps: int
    """Taps of the blur."""
    scale: np.ndarray
    """float32 [3]: 1 / std."""
    shift: np.ndarray
    """float32 [3]: −mean / std."""


class Scratch(NamedTuple):
    """Working memory of one thread, aligned to 64 bytes: without alignment the kernels are 1.3 to 3 times slower."""

    image: np.ndarray
    """float32: each strip's planes before the contrast."""
    fixed: np.ndarray
    """uint16: the blur's source.  It shares memory with `image`, and is written only over strips that are finished."""
    strip: np.ndarray
    """float32 [3·STRIP]: the planes of one strip."""
    weights: np.ndarray
    """uint16: half a blur kernel."""
    offsets: np.ndarray
    """uint64 [2, …]: where the taps above (or left) and below (or right) begin."""
    lines: np.ndarray
    """uint16: ROWS rows blurred vertically, with reflected borders."""
    blurred: np.ndarray
    """uint16: the same blurred both ways."""
