"""The drawn numbers: their layout (golden table), their distributions, and torchvision's own sampling."""

import math
from itertools import permutations

import numpy as np
import pytest

from pipelines.views import ViewParams, ViewSpec, draw_views
from pipelines.views.philox import philox4x32, uniform

SPEC = ViewSpec.simclr(224)


def draw(count=4000, spec=SPEC, seed=0, epoch=0, height=375, width=500) -> ViewParams:
    return draw_views(spec, seed, epoch, np.arange(count), np.full(count, height), np.full(count, width))


def test_golden_table():
    """Numbers that checkpoints and papers rely on: whoever changes them breaks every resumed run."""
    params = draw_views(
        SPEC, 2026, 3, np.array([0, 7, 2**31]), np.array([375, 1, 4000]), np.array([500, 900, 3])
    )
    assert params.box.tolist() == GOLDEN["box"]
    assert params.flip.tolist() == GOLDEN["flip"]
    assert params.jitter.tolist() == GOLDEN["jitter"]
    assert params.jitter_order.tolist() == GOLDEN["order"]
    assert params.grayscale.tolist() == GOLDEN["gray"]
    np.testing.assert_allclose(params.jitter_factors, GOLDEN["factors"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(params.blur_sigma, GOLDEN["sigma"], rtol=0, atol=1e-12)


def test_a_number_depends_on_its_own_coordinates_only():
    whole = draw(64)
    indices = np.array([40, 3, 17])
    part = draw_views(SPEC, 0, 0, indices, np.full(3, 375), np.full(3, 500))
    np.testing.assert_array_equal(part.box, whole.box[:, indices])
    np.testing.assert_array_equal(part.blur_sigma, whole.blur_sigma[:, indices])


def test_views_epochs_and_seeds_differ():
    base = draw(200)
    assert (base.jitter_factors[0] != base.jitter_factors[1]).all(-1).all()
    for other in (draw(200, epoch=1), draw(200, seed=1), draw(200, seed=1 << 32)):
        assert (other.jitter_factors != base.jitter_factors).any(-1).all()


def crop_by_the_book(index, view, height, width, scale, ratio):
    """torchvision's RandomResizedCrop.get_params, one view at a time, on the Philox uniforms."""
    for number in range(10):
        u = [float(uniform(word)) for word in philox4x32((number, view, index, 5), (9, 0))]
        area = height * width * (scale[0] + u[0] * (scale[1] - scale[0]))
        aspect = math.exp(math.log(ratio[0]) + u[1] * (math.log(ratio[1]) - math.log(ratio[0])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return math.floor(u[2] * (height - h + 1)), math.floor(u[3] * (width - w + 1)), h, w
    if width / height < min(ratio):
        w, h = width, round(width / min(ratio))
    elif width / height > max(ratio):
        h, w = height, round(height * max(ratio))
    else:
        w, h = width, height
    return (height - h) // 2, (width - w) // 2, h, w


@pytest.mark.parametrize(
    ("height", "width"),
    [(375, 500), (500, 333), (32, 32), (100, 1000), (1000, 60), (1, 1), (2, 3)],
    # the elongated ones use all ten tries and the central fall-back, the tiny ones round to nothing
)
def test_boxes_are_torchvisions(height, width):
    params = draw_views(SPEC, 9, 5, np.arange(300), np.full(300, height), np.full(300, width))
    expected = [
        [crop_by_the_book(index, view, height, width, SPEC.scale, SPEC.ratio) for index in range(300)]
        for view in range(2)
    ]
    assert params.box.tolist() == [[list(box) for box in row] for row in expected]


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 10000), (10000, 1), (7, 3)])
def test_boxes_lie_inside_the_image(height, width):
    for spec in (SPEC, ViewSpec.center(64), ViewSpec(ratio=(0.01, 0.02)), ViewSpec(ratio=(50, 100))):
        top, left, h, w = np.moveaxis(draw(500, spec, height=height, width=width).box, -1, 0)
        assert (top >= 0).all() and (left >= 0).all() and (h >= 1).all() and (w >= 1).all()
        assert (top + h <= height).all() and (left + w <= width).all()


def test_distributions():
    """Means and extremes of 20,000 draws, bounds at about five standard errors."""
    params = draw(10000)
    for drawn, p in (
        (params.flip, 0.5),
        (params.jitter, 0.8),
        (params.grayscale, 0.2),
        (params.blur_sigma > 0, 0.5),
    ):
        assert abs(drawn.mean() - p) < 0.018
    for name, low, high in (
        ("brightness", 0.2, 1.8),
        ("contrast", 0.2, 1.8),
        ("saturation", 0.2, 1.8),
        ("hue", -0.2, 0.2),
    ):
        values = params.jitter_factors[..., ("brightness", "contrast", "saturation", "hue").index(name)]
        assert (
            low <= values.min() < low + 0.01 * (high - low)
            and high - 0.01 * (high - low) < values.max() <= high
        )
        assert abs(values.mean() - (low + high) / 2) < 0.012 * (high - low)
    sigma = params.blur_sigma[params.blur_sigma > 0]
    assert 0.1 <= sigma.min() < 0.12 and 1.98 < sigma.max() <= 2.0
    seen, counts = np.unique(params.jitter_order.reshape(-1, 4), axis=0, return_counts=True)
    assert seen.tolist() == [list(order) for order in permutations(range(4))]
    assert counts.min() > 20000 / 24 * 0.8


def test_center_box():
    assert draw(1, ViewSpec.center(224), height=375, width=500).box.tolist() == [[[23, 86, 328, 328]]]
    assert draw(1, ViewSpec.center(32), height=32, width=32).box.tolist() == [[[0, 0, 32, 32]]]


def test_slicing_and_replacing():
    params = draw(6)
    part = params[:, 2:4]
    assert part.box.shape == (2, 2, 4)
    copy = params.copy()
    copy.replace_row(0, params[:, 5:6])
    np.testing.assert_array_equal(copy.jitter_factors[:, 0], params.jitter_factors[:, 5])
    assert (params.jitter_factors[:, 0] != params.jitter_factors[:, 5]).any()


@pytest.mark.parametrize(
    "wrong",
    [
        {"size": 0},
        {"scale": (0.5, 0.1)},
        {"flip_p": 1.5},
        {"jitter_strength": 3},
        {"blur_sigma": (0, 1)},
        {"std": (0, 1, 1)},
    ],
)
def test_spec_names_the_wrong_field(wrong):
    with pytest.raises(ValueError, match=rf"ViewSpec\.{next(iter(wrong))}"):
        ViewSpec(**wrong)


def test_presets_follow_the_paper():
    assert (ViewSpec.simclr(224).jitter_strength, ViewSpec.simclr(224).blur_p) == (1.0, 0.5)
    assert (ViewSpec.simclr(32).jitter_strength, ViewSpec.simclr(32).blur_p) == (0.5, 0.0)
    assert [ViewSpec(size=size).blur_kernel for size in (32, 96, 160, 224)] == [3, 9, 17, 23]


GOLDEN = {
    "box": [
        [[88, 121, 206, 234], [0, 449, 1, 1], [1998, 0, 4, 3]],
        [[139, 161, 199, 222], [0, 449, 1, 1], [1998, 0, 4, 3]],
    ],
    "flip": [[False, False, False], [False, False, False]],
    "jitter": [[True, False, False], [True, False, True]],
    "order": [[[3, 1, 2, 0], [1, 0, 3, 2], [2, 1, 3, 0]], [[0, 3, 2, 1], [1, 0, 2, 3], [2, 3, 0, 1]]],
    "factors": [
        [
            [0.7324739456176758, 0.27121276855468746, 1.745992374420166, -0.1095428228378296],
            [0.6403142929077148, 1.7566810607910157, 1.7124580383300783, 0.15311737060546876],
            [0.7779585838317871, 0.9111320495605468, 0.9229619026184082, -0.06800374984741211],
        ],
        [
            [1.4184553146362304, 1.363538646697998, 0.8495655059814453, 0.07271101474761965],
            [1.4574689865112305, 0.7659107208251953, 1.4570314407348632, -0.13616619110107422],
            [0.2604187965393066, 0.6467568397521972, 0.3865601539611816, 0.05228607654571532],
        ],
    ],
    "gray": [[False, False, False], [False, False, False]],
    "sigma": [[0.0, 0.0, 0.0], [1.5092962384223938, 1.6938684940338136, 0.6287149369716644]],
}


@pytest.mark.parametrize(
    "wrong",
    [
        {"mean": (0.5,)},
        {"std": (0.5, 0.5, 0.5, 0.5)},
        {"mean": (0.0, float("nan"), 0.0)},
        {"std": (0.0, 1.0, 1.0)},
        {"num_views": 2.0},
        {"size": 32.0},
    ],
)
def test_specs_that_compiled_code_would_read_beyond(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=f"ViewSpec.{name} is"):
        ViewSpec(**wrong)
