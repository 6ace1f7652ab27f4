"""draw_views: from a ViewSpec to a table of numbers, before any pixel is touched.

Layout of the draws (guarded by a golden table in the tests).  The Philox counter is
(block, view, index, epoch), its key the 64-bit seed; every block gives four uniforms in [0, 1):

    block 0…9    try t of the random crop: area, log-ratio, top, left
    block 10     flip, jitter, grayscale, blur: each happens where u < p
    block 11     brightness, contrast, saturation, hue
    block 12     order of the jitter (one of 24 permutations, lexicographic), sigma, solarization, unused

Every number is drawn in float64: float32 would move a crop box in one of 30,000 draws.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import permutations

import numpy as np

from pipelines.system.renamed import accept_old_attributes
from pipelines.views.groups import as_specs
from pipelines.views.philox import philox4x32, split_seed, uniform
from pipelines.views.spec import ViewSpec

CROP_TRIES = 10
_EVENTS, _FACTORS, _ORDER = CROP_TRIES, CROP_TRIES + 1, CROP_TRIES + 2
_PERMUTATIONS = np.array(list(permutations(range(4))), np.uint8)


@dataclass(frozen=True, eq=False)
class ViewParams:
    """The drawn numbers of V views of B images: arrays whose first two dimensions are [V, B]."""

    box: np.ndarray
    """int32 [V, B, 4]: top, left, height, width of the crop in pixels of the source image."""
    flip: np.ndarray
    """bool [V, B]: mirror the resized crop left to right."""
    jitter: np.ndarray
    """bool [V, B]: apply the color jitter."""
    jitter_order: np.ndarray
    """uint8 [V, B, 4]: the jitter's operations as they run; 0 brightness, 1 contrast, 2 saturation, 3 hue."""
    jitter_factors: np.ndarray
    """float64 [V, B, 4]: brightness, contrast, saturation factors and hue shift (in turns), in that order."""
    grayscale: np.ndarray
    """bool [V, B]: turn to grayscale."""
    blur_sigma: np.ndarray
    """float64 [V, B]: standard deviation of the blur in pixels, 0 where there is none."""
    solarize: np.ndarray
    """float64 [V, B]: threshold in [0, 1] at or above which values are inverted; infinity: none are."""

    def __getitem__(self, key: object) -> "ViewParams":
        """Return the numbers of some of the views or images: `params[:, 3:5]`, `params[0:1]`."""
        return ViewParams(*(getattr(self, field.name)[key] for field in fields(self)))

    def copy(self) -> "ViewParams":
        return ViewParams(*(getattr(self, field.name).copy() for field in fields(self)))

    def replace_row(self, row: int, other: "ViewParams") -> None:
        """Overwrite image `row` with the single image of `other` (a replacement sample)."""
        for field in fields(self):
            getattr(self, field.name)[:, row] = getattr(other, field.name)[:, 0]


accept_old_attributes(
    ViewParams,
    {"order": "jitter_order", "factors": "jitter_factors", "gray": "grayscale", "sigma": "blur_sigma"},
)


def draw_views(
    views: ViewSpec | Sequence[ViewSpec],
    seed: int,
    epoch: int,
    indices: np.ndarray,
    heights: np.ndarray,
    widths: np.ndarray,
) -> ViewParams:
    """Draw the numbers of all views of each image.

    A pure function of its arguments: an image gets the same numbers in an epoch whatever its batch, the order, the
    rank or the engine.  Views are numbered through all specs, and a view's draws depend on its number.

    Args:
        views: the distributions: a spec, or several.
        seed: 64-bit seed of the run.
        epoch: epoch number, 0 ≤ epoch < 2³².
        indices: int [B], sample numbers in the file, 0 ≤ index < 2³².
        heights, widths: int [B], size of each image in pixels.

    Returns:
        ViewParams with arrays [V, B, …], V being the number of views of all specs together.
    """
    specs = as_specs(views)
    indices = np.asarray(indices, np.uint64)
    sizes = np.asarray(heights, np.int64), np.asarray(widths, np.int64)
    firsts = np.cumsum([0, *(spec.num_views for spec in specs)]).tolist()
    tables = [
        _draw(spec, first, seed, epoch, indices, *sizes) for spec, first in zip(specs, firsts, strict=False)
    ]
    if len(tables) == 1:
        return tables[0]
    return ViewParams(
        *(np.concatenate([getattr(t, field.name) for t in tables]) for field in fields(ViewParams))
    )


def _draw(
    spec: ViewSpec,
    first: int,
    seed: int,
    epoch: int,
    indices: np.ndarray,
    heights: np.ndarray,
    widths: np.ndarray,
) -> ViewParams:
    """Draw the numbers of the views of one spec; the first of them has the number `first`."""
    key = split_seed(seed)
    view = np.arange(first, first + spec.num_views, dtype=np.uint64)[:, None]

    def block(number: int) -> list[np.ndarray]:
        words = philox4x32((number, view, indices[None, :], epoch), key)
        return [uniform(word) for word in words]

    shape = (spec.num_views, len(indices))
    height, width = np.broadcast_to(heights, shape), np.broadcast_to(widths, shape)
    if spec.center_crop_fraction is not None:
        box = _center_box(spec.center_crop_fraction, height, width)
    else:
        box = _random_box(spec, first, key, epoch, indices, height, width)

    flip, jitter, grayscale, blur = (
        u < p
        for u, p in zip(block(_EVENTS), (spec.flip_p, spec.jitter_p, spec.gray_p, spec.blur_p), strict=True)
    )
    half_range = np.array(spec.jitter_ranges)
    low = np.append(np.maximum(0, 1 - half_range[:3]), -half_range[3])
    high = np.append(1 + half_range[:3], half_range[3])
    jitter_factors = low + np.stack(block(_FACTORS), -1) * (high - low)
    u_permutation, u_sigma, u_solarize, _ = block(_ORDER)
    jitter_order = _PERMUTATIONS[(u_permutation * 24).astype(np.int64)]
    sigma_low, sigma_high = spec.blur_sigma
    blur_sigma = np.where(blur, sigma_low + u_sigma * (sigma_high - sigma_low), 0.0)
    solarize = np.where(u_solarize < spec.solarize_p, spec.solarize_threshold, np.inf)
    return ViewParams(box, flip, jitter, jitter_order, jitter_factors, grayscale, blur_sigma, solarize)


def _random_box(
    spec: ViewSpec,
    first: int,
    key: tuple[int, int],
    epoch: int,
    indices: np.ndarray,
    height: np.ndarray,
    width: np.ndarray,
) -> np.ndarray:
    """Draw boxes as torchvision's `RandomResizedCrop.get_params`: ten tries, then the largest central box whose ratio
    is in the range.

    A try is drawn only for the views whose earlier tries failed (about one in four needs a second).
    """
    shape = height.shape
    box = _fallback_box(spec.ratio, height, width)
    log_low, log_high = np.log(spec.ratio)
    view, image = (axis.ravel() for axis in np.indices(shape))  # the views that have no box yet
    for number in range(CROP_TRIES):
        words = philox4x32((number, (first + view).astype(np.uint64), indices[image], epoch), key)
        area, ratio, top, left = (uniform(word) for word in words)
        h_image, w_image = height[view, image], width[view, image]
        area = h_image * w_image * (spec.scale[0] + area * (spec.scale[1] - spec.scale[0]))
        ratio = np.exp(log_low + ratio * (log_high - log_low))
        w = np.rint(np.sqrt(area * ratio)).astype(np.int64)  # rint rounds half to even, as Python's round
        h = np.rint(np.sqrt(area / ratio)).astype(np.int64)
        fits = (w > 0) & (w <= w_image) & (h > 0) & (h <= h_image)
        tried = np.stack([np.floor(top * (h_image - h + 1)), np.floor(left * (w_image - w + 1)), h, w], -1)
        box[view[fits], image[fits]] = tried[fits]
        view, image = view[~fits], image[~fits]
        if not len(view):
            break
    return box


def _fallback_box(ratio: tuple[float, float], height: np.ndarray, width: np.ndarray) -> np.ndarray:
    """Return for every image the central box that `get_params` falls back to."""
    in_ratio = width / height
    # np.maximum is for images such as 1×10000, for which torchvision rounds a side to 0 and fails
    h = np.where(in_ratio < ratio[0], np.maximum(np.rint(width / ratio[0]), 1), height).astype(np.int64)
    w = np.where(in_ratio > ratio[1], np.maximum(np.rint(height * ratio[1]), 1), width).astype(np.int64)
    h, w = np.minimum(h, height), np.minimum(w, width)
    return np.stack([(height - h) // 2, (width - w) // 2, h, w], -1).astype(np.int32)


def _center_box(fraction: float, height: np.ndarray, width: np.ndarray) -> np.ndarray:
    side = np.maximum(np.rint(fraction * np.minimum(height, width)), 1).astype(np.int64)
    return np.stack([(height - side) // 2, (width - side) // 2, side, side], -1).astype(np.int32)
