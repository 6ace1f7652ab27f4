"""The fused CPU augmentation against torchvision and the reference, and the memory that it writes.

Further closed forms are in test_closed_forms.py.
"""

import threading

import numpy as np
import pytest
import torch
from support.augment_cases import (
    HUE,
    before_normalisation,
    crops_of,
    drawn,
    luma,
    oracle_views,
    plain,
)

from pipelines.ops.augment import cpu, reference
from pipelines.ops.augment.cpu_kernels import TAIL
from pipelines.views import ViewSpec

LEVEL = 1 / 255
ROUNDING = 5e-6
FIXED = 0.025 * LEVEL
"""What the blur's 16-bit fixed point may cost."""


def augmented(crops, spec):
    return before_normalisation(cpu.augment(*drawn(crops), spec), spec)


def as_float(crops):
    return torch.as_tensor(crops.pixels).permute(0, 1, 4, 2, 3).double() / 255


def truncated(sigma, spec):
    """[...] bool: views whose blur has taps with weights that vanish, by the rule of the docstring of TAIL."""
    taps = np.arange(-(spec.blur_kernel // 2), spec.blur_kernel // 2 + 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        weights = np.exp(-0.5 * (taps / sigma[..., None]) ** 2)
    return (sigma > 0) & (weights[..., 0] * 2 <= TAIL * weights.sum(-1))


def assert_within_bounds(views, expected, crops, spec):
    """design: 0.05/255, or 0.25/255 where the blur's kernel is truncated."""
    error = (views - expected).abs().masked_fill(expected.isnan(), 0).amax((2, 3, 4)).numpy()
    bound = np.where(truncated(crops.plan.params.blur_sigma, spec), 0.25 * LEVEL, 0.05 * LEVEL)
    assert (error <= bound).all(), f"{(error / LEVEL).max():.4f} levels"


@pytest.mark.parametrize(
    ("size", "num_images"),
    [
        (224, 12),  # 12 of 23 taps or fewer, whole strips
        (160, 12),
        (96, 30),
        (100, 10),  # 10,000 pixels: the last strip is not whole
        (37, 50),  # odd, and no multiple of a vector
        (32, 50),
        (21, 20),  # smallest blur, three taps
        (19, 10),  # largest size whose blur has one tap
        (3, 10),
        (2, 10),
        (1, 10),
    ],
)
def test_equals_torchvision(size, num_images):
    spec = ViewSpec.simclr(size, jitter_strength=1.0, blur_p=0.5)
    crops = crops_of(spec, num_images, seed=size)
    assert_within_bounds(augmented(crops, spec), oracle_views(crops, spec), crops, spec)


def test_equals_torchvision_at_the_strongest_jitter():
    spec = ViewSpec.simclr(37, jitter_strength=2.5, jitter_p=1.0)  # hue up to half a turn, brightness 0 to 3
    crops = crops_of(spec, 20, seed=1)
    assert_within_bounds(augmented(crops, spec), oracle_views(crops, spec), crops, spec)


@pytest.mark.parametrize("size", [224, 37])
def test_solarization_equals_torchvision(size):
    """BYOL's second view, more often, and at thresholds from 0 (a negative) to 1 (white becomes black)."""
    spec = ViewSpec(size, num_views=1, blur_p=0.5, solarize_p=0.7)
    crops = crops_of(spec, 12, seed=2)
    drawn = crops.plan.params.solarize
    drawn[0] = np.where(np.isinf(drawn[0]), np.inf, np.linspace(0, 1, 12))
    assert np.isinf(drawn).any() and (drawn < 1).any()
    # what the blur's truncated kernel may cost decides the side of a value as near to the threshold as that
    assert_within_bounds(augmented(crops, spec), oracle_views(crops, spec, 0.3 * LEVEL), crops, spec)


@pytest.mark.parametrize("sigma", [0.0, 1.0])
@pytest.mark.parametrize("gray", [False, True])
def test_threshold_zero_is_the_negative(sigma, gray):
    """Black above all: what the fixed point is off by may not leave it black."""
    spec = ViewSpec(80, num_views=1)
    crops = crops_of(spec, 2, **plain(grayscale=gray, blur_sigma=sigma, solarize=0.0))
    black = crops._replace(pixels=np.zeros_like(crops.pixels))
    assert (augmented(black, spec) - 1).abs().max() < FIXED


def test_equals_the_reference_on_many_views():
    spec = ViewSpec.simclr(64, blur_p=0.5)
    crops = crops_of(spec, 150, seed=3)
    assert_within_bounds(
        augmented(crops, spec),
        before_normalisation(reference.augment(*drawn(crops), spec), spec),
        crops,
        spec,
    )


def test_gray_alone_and_with_blur():
    spec = ViewSpec.simclr(40)
    sharp = crops_of(spec, 3, **plain(grayscale=True))
    gray = torch.from_numpy(luma(sharp.pixels)).unsqueeze(2).expand(2, 3, 3, 40, 40)
    torch.testing.assert_close(augmented(sharp, spec), gray, rtol=0, atol=ROUNDING)
    soft = augmented(crops_of(spec, 3, **plain(grayscale=True, blur_sigma=1.0)), spec)
    assert (soft[:, :, 0] - soft[:, :, 2]).abs().max() < ROUNDING
    crops = crops_of(spec, 3, **plain(grayscale=True, blur_sigma=1.0))
    assert_within_bounds(soft, oracle_views(crops, spec), crops, spec)


def test_hue_of_the_full_circle():
    """Every hue of full chroma, turned by every shift: nothing tears at the borders of the six sectors."""
    spec = ViewSpec.simclr(38)  # 1444 pixels ≤ 1530 hues
    wheel = np.clip(np.abs((np.arange(1530)[:, None] / 255 + [3, 1, 5]) % 6 - 3) * 255 - 255, 0, 255)
    pixels = np.tile(wheel[:1444].reshape(38, 38, 3).astype(np.uint8), (2, 25, 1, 1, 1))
    factors = np.ones((2, 25, 4))
    factors[..., HUE] = np.linspace(-0.5, 0.5, 50).reshape(2, 25)
    crops = crops_of(spec, 25, **plain(jitter=True, jitter_factors=factors))._replace(pixels=pixels)
    torch.testing.assert_close(
        augmented(crops, spec), oracle_views(crops, spec).double(), rtol=0, atol=2 * ROUNDING
    )


@pytest.mark.parametrize("sigma", [0.1, 0.3, 0.5, 1.0, 1.5, 2.0])
def test_blur_over_the_drawn_range(sigma):
    spec = ViewSpec.simclr(160)
    crops = crops_of(spec, 2, **plain(blur_sigma=sigma))
    assert_within_bounds(augmented(crops, spec), oracle_views(crops, spec), crops, spec)


@pytest.mark.parametrize("size", [80, 160, 240, 400])  # radius 4, 8, 12, 20
def test_wide_blur_is_not_truncated(size):
    spec = ViewSpec.simclr(size)
    crops = crops_of(spec, 1, **plain(blur_sigma=9.0))
    torch.testing.assert_close(
        augmented(crops, spec), oracle_views(crops, spec).double(), rtol=0, atol=0.05 * LEVEL
    )


@pytest.mark.parametrize("sigma", [0.3, 0.8, 1.3, 2.0, 7.0])
@pytest.mark.parametrize("gray", [False, True])
def test_blur_keeps_flat_images(sigma, gray):
    """White above all: the fixed point may not wrap around to black."""
    spec = ViewSpec.simclr(224, num_views=1)
    crops = crops_of(spec, 3, **plain(blur_sigma=sigma, grayscale=gray))
    pixels = np.broadcast_to(np.array([0, 127, 255], np.uint8)[:, None, None, None], crops.pixels.shape[1:])
    flat = crops._replace(pixels=pixels[None].copy())
    expected = as_float(flat) * (0.9999 if gray else 1)
    torch.testing.assert_close(augmented(flat, spec), expected, rtol=0, atol=FIXED)


def test_blur_reflects_at_the_borders():
    """A bright corner pixel is its own mirror's neighbour: reflected without repeating the border."""
    spec, sigma = ViewSpec.simclr(80), 1.3
    crops = crops_of(spec, 1, **plain(blur_sigma=sigma))
    pixels = np.zeros_like(crops.pixels)
    pixels[:, :, 1, 78] = 255
    kernel = np.exp(-0.5 * (np.arange(-4, 5) / sigma) ** 2)
    kernel /= kernel.sum()
    near = np.array([2 * kernel[5], kernel[4] + kernel[6], kernel[5] + kernel[7], kernel[6] + kernel[8]])
    corner = torch.from_numpy(np.outer(near, near[::-1].copy()))
    blurred = augmented(crops._replace(pixels=pixels), spec)[:, :, :, :4, 76:]
    torch.testing.assert_close(blurred, corner.expand(2, 1, 3, 4, 4), rtol=0, atol=FIXED)


@pytest.mark.parametrize("size", [1, 19, 37, 96, 100])
def test_writes_its_own_rows_all_of_them_and_nothing_else(size):
    spec = ViewSpec.simclr(size, blur_p=0.5)
    crops = crops_of(spec, 9, seed=2)
    whole = cpu.augment(*drawn(crops), spec).permute(0, 1, 3, 4, 2).numpy()
    margin = 4096
    memory = np.full(whole.size + 2 * margin, np.nan, np.float32)
    out = memory[margin:-margin].reshape(whole.shape)
    for b in (0, 4, 8):
        views = np.ascontiguousarray(crops.pixels[:, b : b + 1])
        scratch = cpu.new_scratch(spec)
        for array in scratch:
            array.view(np.uint8).fill(0xFF)  # NaN as float32: what lies in the scratch may not matter
        cpu.augment_rows(
            b, b + 1, views, 0, cpu.numbers(crops.plan.params), cpu.constants(spec), out, scratch
        )
    written = np.array([b in (0, 4, 8) for b in range(9)])
    np.testing.assert_array_equal(out[:, written], whole[:, written])
    assert np.isfinite(whole).all()
    assert np.isnan(out[:, ~written]).all()
    assert np.isnan(memory[:margin]).all()
    assert np.isnan(memory[-margin:]).all()


def test_four_threads_give_the_same_bits():
    spec = ViewSpec.simclr(96)
    crops = crops_of(spec, 48, seed=4)
    expected = cpu.augment(*drawn(crops), spec).permute(0, 1, 3, 4, 2).numpy()
    out = np.full(expected.shape, np.nan, np.float32)
    started = threading.Barrier(4)

    def work(first):
        scratch = cpu.new_scratch(spec)
        started.wait(timeout=60)
        for b in range(first, 48, 4):
            numbers = cpu.numbers(crops.plan.params)
            cpu.augment_rows(b, b + 1, crops.pixels, b, numbers, cpu.constants(spec), out, scratch)

    threads = [threading.Thread(target=work, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    np.testing.assert_array_equal(out, expected)
    assert torch.equal(
        cpu.augment(*drawn(crops), spec, num_threads=3),
        cpu.augment(*drawn(crops), spec),
    )


def test_takes_tensors_and_strided_arrays():
    spec = ViewSpec.simclr(24)
    crops = crops_of(spec, 5)
    expected = cpu.augment(*drawn(crops), spec)
    strided = np.asfortranarray(crops.pixels)
    assert torch.equal(cpu.augment(torch.from_numpy(crops.pixels), crops.plan.params, spec), expected)
    assert torch.equal(cpu.augment(strided, crops.plan.params, spec), expected)


def test_normalises_with_the_specs_mean_and_std():
    spec = ViewSpec.simclr(24, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 2.0))
    crops = crops_of(spec, 2, **plain())
    mean, std = torch.tensor(spec.mean).view(3, 1, 1), torch.tensor(spec.std).view(3, 1, 1)
    expected = (as_float(crops).float() - mean) / std
    torch.testing.assert_close(cpu.augment(*drawn(crops), spec), expected, rtol=0, atol=1e-6)


def test_memory_is_aligned():
    assert cpu.new_views((2, 3, 7, 7, 3)).ctypes.data % 64 == 0
    scratch = cpu.new_scratch(ViewSpec.simclr(37))
    aligned = {name: array.ctypes.data % 64 == 0 for name, array in scratch._asdict().items()}
    assert all(aligned[name] for name in ("image", "fixed", "strip", "lines", "blurred")), aligned
