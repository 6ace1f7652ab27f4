"""Crops with drawn numbers, and what torchvision makes of them: for the tests of every augmentation executor."""

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from support.oracle import augment_oracle

from pipelines.contracts import BatchPlan
from pipelines.views import ViewParams, ViewSpec, draw_views

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)


class Crops(NamedTuple):
    """Crops of one group of views."""

    plan: BatchPlan
    pixels: np.ndarray
    """uint8 [V, B, H, W, 3]."""


def pictures(size: int, count: int, seed: int = 0) -> np.ndarray:
    """uint8 [count, size, size, 3]: smooth colors, noise, and few saturated or gray values, in turn."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] / max(size, 2)
    images = []
    for i in range(count):
        if i % 3 == 0:
            waves = rng.uniform(0, 9, (3, 3, 1, 1))
            image = (
                127.5
                + 150 * np.sin(waves[0] * x + waves[1] * y + waves[2])
                + rng.normal(0, 4, (3, size, size))
            )
            images.append(np.clip(image, 0, 255).transpose(1, 2, 0))
        elif i % 3 == 1:
            images.append(rng.integers(0, 256, (size, size, 3)))
        else:  # ties between channels: equal maxima, no chroma at all, black and white
            images.append(rng.choice([0, 127, 255], (size, size, 3)))
    return np.stack(images).astype(np.uint8)


def crops_of(spec: ViewSpec, num_images: int, seed: int = 0, **numbers: Any) -> Crops:
    """Pictures and the numbers drawn for them; a named field of ViewParams is overwritten by what it is given."""
    indices, sides = np.arange(num_images), np.full(num_images, 300)
    params = draw_views(spec, seed, 0, indices, sides, sides)
    for name, value in numbers.items():
        table = getattr(params, name)
        given = np.broadcast_to(np.asarray(value, table.dtype), table.shape).copy()
        params = replace(params, **{name: given})
    pixels = pictures(spec.size, spec.num_views * num_images, seed)
    return Crops(
        BatchPlan(0, 0, indices, params), pixels.reshape(spec.num_views, num_images, *pixels.shape[1:])
    )


def plain(**numbers: Any) -> dict:
    """Numbers of a view to which nothing happens, but for what is given."""
    return {"jitter": False, "grayscale": False, "blur_sigma": 0.0, "solarize": np.inf, **numbers}


def only(operation: int, factor: float) -> dict:
    """Numbers of a jitter of which only one operation does anything."""
    factors = [1.0, 1.0, 1.0, 0.0]
    factors[operation] = factor
    return plain(jitter=True, jitter_factors=factors)


def drawn(crops: Crops) -> tuple[np.ndarray, ViewParams]:
    """Pixels and numbers, as the executors take them."""
    return crops.pixels, crops.plan.params


def oracle_views(crops: Crops, spec: ViewSpec, threshold_margin: float = 1e-4) -> torch.Tensor:
    """[V, B, 3, H, W] in [0, 1]: every view by torchvision; NaN where a solarization is undecided."""
    params = crops.plan.params
    rows = [
        torch.stack(
            [augment_oracle(crop, params[v, b], spec, threshold_margin) for b, crop in enumerate(row)]
        )
        for v, row in enumerate(np.asarray(crops.pixels))
    ]
    return torch.stack(rows)


def before_normalisation(views: torch.Tensor, spec: ViewSpec) -> torch.Tensor:
    """float64 [V, B, 3, H, W] in [0, 1], from normalised views."""
    mean, std = (torch.tensor(values, dtype=torch.float64).view(3, 1, 1) for values in (spec.mean, spec.std))
    return views.double() * std + mean


def luma(pixels: np.ndarray) -> np.ndarray:
    """float64 [...]: gray values in [0, 1] of uint8 [..., 3]."""
    return pixels @ np.array([0.2989, 0.587, 0.114]) / 255
