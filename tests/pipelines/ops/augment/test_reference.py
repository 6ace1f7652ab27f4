"""The plain torch augmentation against torchvision; its closed forms are in test_closed_forms.py."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from support.augment_cases import (
    before_normalisation,
    crops_of,
    drawn,
    oracle_views,
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
