"""What the reference and the CPU executor must both compute: closed forms of each operation, layout and types."""

import itertools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import torch
from support.augment_cases import (
    BRIGHTNESS,
    CONTRAST,
    HUE,
    SATURATION,
    before_normalisation,
    crops_of,
    drawn,
    luma,
    only,
    oracle_views,
    plain,
)

from pipelines.ops.augment import cpu, reference
from pipelines.views import ViewSpec

ROUNDING = 5e-6
"""Rounding of float32: torchvision's hue alone is off by 1e-6, and two factors of 1.8 (up to 3) may follow it."""


class Executor(NamedTuple):
    augment: Callable[..., torch.Tensor]
    rounding: float
    """Bound for the jitter and grayscale, of values in [0, 1]."""
    blur: float
    """Bound for the blur: the CPU's is in 16-bit fixed point."""

    def views(self, crops, spec):
        return before_normalisation(self.augment(*drawn(crops), spec), spec)


EXECUTORS = {
    "reference": Executor(reference.augment, ROUNDING, ROUNDING),
    "cpu": Executor(cpu.augment, 2 * ROUNDING, 0.025 / 255),
}


@pytest.fixture(params=EXECUTORS)
def executor(request) -> Executor:
    return EXECUTORS[request.param]


def as_float(crops):
    return torch.as_tensor(crops.pixels).permute(0, 1, 4, 2, 3).double() / 255


def test_every_order_of_the_jitter_equals_torchvision(executor):
    spec = ViewSpec.simclr(16)
    orders = list(itertools.permutations(range(4)))
    crops = crops_of(spec, 24, **plain(jitter=True, jitter_order=orders))
    expected = oracle_views(crops, spec).double()
    torch.testing.assert_close(executor.views(crops, spec), expected, rtol=0, atol=executor.rounding)
    # and the order matters: with another one most views differ visibly
    other = crops_of(spec, 24, **plain(jitter=True, jitter_order=orders[::-1]))
    assert ((executor.views(other, spec) - expected).abs().amax((2, 3, 4)) > 0.01).float().mean() > 0.7


@pytest.mark.parametrize("operation", [BRIGHTNESS, CONTRAST, SATURATION, HUE])
def test_neutral_factors_change_nothing(executor, operation):
    spec = ViewSpec.simclr(37)
    crops = crops_of(spec, 3, **only(operation, 0.0 if operation == HUE else 1.0))
    torch.testing.assert_close(executor.views(crops, spec), as_float(crops), rtol=0, atol=ROUNDING)


def test_factor_zero(executor):
    spec = ViewSpec.simclr(37)
    shape = (2, 3, 3, 37, 37)
    black = crops_of(spec, 3, **only(BRIGHTNESS, 0.0))
    assert executor.views(black, spec).abs().max() < ROUNDING
    flat = crops_of(spec, 3, **only(CONTRAST, 0.0))
    mean = torch.from_numpy(luma(flat.pixels).mean((2, 3)))[..., None, None, None]
    torch.testing.assert_close(executor.views(flat, spec), mean.expand(shape), rtol=0, atol=ROUNDING)
    colorless = crops_of(spec, 3, **only(SATURATION, 0.0))
    gray = torch.from_numpy(luma(colorless.pixels)).unsqueeze(2)
    torch.testing.assert_close(executor.views(colorless, spec), gray.expand(shape), rtol=0, atol=ROUNDING)


@pytest.mark.parametrize(("turn", "channels"), [(1 / 3, [2, 0, 1]), (-1 / 3, [1, 2, 0]), (0.0, [0, 1, 2])])
def test_thirds_of_a_turn_permute_the_channels(executor, turn, channels):
    """A third of a turn makes red green, green blue and blue red."""
    spec = ViewSpec.simclr(37)
    crops = crops_of(spec, 3, **only(HUE, turn))
    expected = as_float(crops)[:, :, channels]
    torch.testing.assert_close(executor.views(crops, spec), expected, rtol=0, atol=ROUNDING)


def test_half_turns_meet_and_gray_has_no_hue(executor):
    spec = ViewSpec.simclr(37)
    left, right = (executor.views(crops_of(spec, 3, **only(HUE, turn)), spec) for turn in (-0.5, 0.5))
    torch.testing.assert_close(left, right, rtol=0, atol=ROUNDING)
    crops = crops_of(spec, 3, **only(HUE, 0.17))
    gray = crops._replace(pixels=np.repeat(crops.pixels[..., :1], 3, axis=-1))
    torch.testing.assert_close(executor.views(gray, spec), as_float(gray), rtol=0, atol=ROUNDING)


def test_blur_of_a_point_is_the_gaussian(executor):
    spec, sigma = ViewSpec.simclr(80), 1.3  # nine taps, none dropped
    crops = crops_of(spec, 1, **plain(blur_sigma=sigma))
    pixels = np.zeros_like(crops.pixels)
    pixels[:, :, 40, 30] = 255
    kernel = np.exp(-0.5 * (np.arange(-4, 5) / sigma) ** 2)
    kernel /= kernel.sum()
    expected = torch.zeros(80, 80, dtype=torch.float64)
    expected[36:45, 26:35] = torch.from_numpy(np.outer(kernel, kernel))
    blurred = executor.views(crops._replace(pixels=pixels), spec)
    torch.testing.assert_close(blurred, expected.expand(2, 1, 3, 80, 80), rtol=0, atol=executor.blur)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_layout_and_dtype(executor, dtype):
    spec = ViewSpec.simclr(24)
    crops = crops_of(spec, 5)
    views = executor.augment(*drawn(crops), spec, dtype)
    assert views.shape == (2, 5, 3, 24, 24)
    assert views.dtype == dtype
    assert views.permute(0, 1, 3, 4, 2).is_contiguous()
    assert views[0].is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(views, executor.augment(*drawn(crops), spec).to(dtype))
