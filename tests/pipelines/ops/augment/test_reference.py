"""The plain torch augmentation: against torchvision and closed forms of each operation."""

import itertools
from dataclasses import replace

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

from pipelines.ops.augment import reference
from pipelines.views import ViewSpec

ROUNDING = 5e-6
"""float32's own: torchvision's hue alone is off by 1e-6, and two factors of 1.8 (up to 3) may follow it."""


def augmented(crops, spec):
    return before_normalisation(reference.augment(*drawn(crops), spec), spec)


def as_float(crops):
    return torch.as_tensor(crops.pixels).permute(0, 1, 4, 2, 3) / 255


@pytest.mark.parametrize(
    ("size", "num_images"),
    [
        (224, 4),
        (96, 20),
        (37, 40),  # odd, no multiple of anything
        (32, 40),
        (21, 10),  # smallest blur, three taps
        (19, 6),  # largest size whose blur has one tap
        (2, 6),
        (1, 6),
    ],
)
def test_equals_torchvision(size, num_images):
    spec = ViewSpec.simclr(size, jitter_strength=1.0, blur_p=0.5)
    crops = crops_of(spec, num_images, seed=size)
    torch.testing.assert_close(
        augmented(crops, spec), oracle_views(crops, spec).double(), rtol=0, atol=ROUNDING
    )


@pytest.mark.parametrize("size", [64, 19])
def test_solarization_equals_torchvision(size):
    spec = ViewSpec(size, num_views=1, blur_p=0.5)
    crops = crops_of(spec, 6, seed=2)
    crops.plan.params.solarize[0] = 0.0, 0.25, 0.5, 0.75, 1.0, np.inf
    expected, views = oracle_views(crops, spec).double(), augmented(crops, spec)
    decided = ~expected.isnan()
    # black and white lie on the thresholds 0 and 1, so that rounding decides
    assert decided.float().mean() > 0.9
    torch.testing.assert_close(views[decided], expected[decided], rtol=0, atol=ROUNDING)


def test_equals_torchvision_at_the_strongest_jitter():
    spec = ViewSpec.simclr(37, jitter_strength=2.5, jitter_p=1.0)  # hue up to half a turn, brightness 0 to 3
    crops = crops_of(spec, 20, seed=1)
    torch.testing.assert_close(
        augmented(crops, spec), oracle_views(crops, spec).double(), rtol=0, atol=4 * ROUNDING
    )


def test_every_order_of_the_jitter_equals_torchvision():
    spec = ViewSpec.simclr(16)
    orders = list(itertools.permutations(range(4)))
    crops = crops_of(spec, 24, **plain(jitter=True, jitter_order=orders))
    expected = oracle_views(crops, spec).double()
    torch.testing.assert_close(augmented(crops, spec), expected, rtol=0, atol=ROUNDING)
    # and the order matters: with another one most views differ visibly
    other = crops_of(spec, 24, **plain(jitter=True, jitter_order=orders[::-1]))
    assert ((augmented(other, spec) - expected).abs().amax((2, 3, 4)) > 0.01).float().mean() > 0.7


@pytest.mark.parametrize("operation", [BRIGHTNESS, CONTRAST, SATURATION, HUE])
def test_neutral_factors_change_nothing(operation):
    spec = ViewSpec.simclr(9)
    crops = crops_of(spec, 3, **only(operation, 0.0 if operation == HUE else 1.0))
    torch.testing.assert_close(augmented(crops, spec), as_float(crops).double(), rtol=0, atol=ROUNDING)


def test_factor_zero():
    spec = ViewSpec.simclr(9)
    black = crops_of(spec, 3, **only(BRIGHTNESS, 0.0))
    assert augmented(black, spec).abs().max() < ROUNDING
    flat = crops_of(spec, 3, **only(CONTRAST, 0.0))
    mean = torch.from_numpy(luma(flat.pixels).mean((2, 3)))[..., None, None, None]
    torch.testing.assert_close(augmented(flat, spec), mean.expand(2, 3, 3, 9, 9), rtol=0, atol=ROUNDING)
    colorless = crops_of(spec, 3, **only(SATURATION, 0.0))
    gray = torch.from_numpy(luma(colorless.pixels)).unsqueeze(2)
    torch.testing.assert_close(augmented(colorless, spec), gray.expand(2, 3, 3, 9, 9), rtol=0, atol=ROUNDING)


def test_a_third_of_a_turn_permutes_the_channels():
    spec = ViewSpec.simclr(9)
    crops = crops_of(spec, 3, **only(HUE, 1 / 3))
    turned = as_float(crops)[:, :, [2, 0, 1]].double()  # red becomes green
    torch.testing.assert_close(augmented(crops, spec), turned, rtol=0, atol=ROUNDING)


def test_half_turns_meet_and_gray_has_no_hue():
    spec = ViewSpec.simclr(9)
    left, right = (augmented(crops_of(spec, 3, **only(HUE, turn)), spec) for turn in (-0.5, 0.5))
    torch.testing.assert_close(left, right, rtol=0, atol=ROUNDING)
    crops = crops_of(spec, 3, **only(HUE, 0.17))
    gray = crops._replace(pixels=np.repeat(crops.pixels[..., :1], 3, axis=-1))
    torch.testing.assert_close(augmented(gray, spec), as_float(gray).double(), rtol=0, atol=ROUNDING)


def test_blur_of_a_point_is_the_gaussian():
    spec, sigma = ViewSpec.simclr(80), 1.3  # nine taps
    crops = crops_of(spec, 1, **plain(blur_sigma=sigma))
    pixels = np.zeros_like(crops.pixels)
    pixels[:, :, 40, 30] = 255
    kernel = np.exp(-0.5 * (np.arange(-4, 5) / sigma) ** 2)
    kernel /= kernel.sum()
    expected = torch.zeros(80, 80, dtype=torch.float64)
    expected[36:45, 26:35] = torch.from_numpy(np.outer(kernel, kernel))
    blurred = augmented(crops._replace(pixels=pixels), spec)
    torch.testing.assert_close(blurred, expected.expand(2, 1, 3, 80, 80), rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_layout_and_dtype(dtype):
    spec = ViewSpec.simclr(24)
    crops = crops_of(spec, 5)
    views = reference.augment(*drawn(crops), spec, dtype)
    assert views.shape == (2, 5, 3, 24, 24)
    assert views.dtype == dtype
    assert views.permute(0, 1, 3, 4, 2).is_contiguous()
    assert views[0].is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(views, reference.augment(*drawn(crops), spec).to(dtype))


def test_the_crops_are_left_alone():
    spec = ViewSpec.simclr(24)
    crops = crops_of(spec, 4)
    before = crops.pixels.copy()
    reference.augment(*drawn(crops), spec)
    np.testing.assert_array_equal(crops.pixels, before)


def test_views_do_not_depend_on_their_neighbours():
    spec = ViewSpec.simclr(40)
    crops = crops_of(spec, 6)
    part = crops._replace(
        plan=replace(crops.plan, params=crops.plan.params[:, 2:3]), pixels=crops.pixels[:, 2:3]
    )
    torch.testing.assert_close(
        reference.augment(*drawn(part), spec)[:, 0],
        reference.augment(*drawn(crops), spec)[:, 2],
        rtol=0,
        atol=1e-6,
    )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu():
    spec = ViewSpec.simclr(96)
    crops = crops_of(spec, 16)
    views = reference.augment(torch.from_numpy(crops.pixels).cuda(), crops.plan.params, spec)
    assert views.is_cuda
    torch.testing.assert_close(
        before_normalisation(views.cpu(), spec), oracle_views(crops, spec).double(), rtol=0, atol=2 * ROUNDING
    )
