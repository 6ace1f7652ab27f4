"""Sets of views: several specs, drawn as one table and grouped by size."""

import dataclasses

import numpy as np
import pytest

from pipelines.views import ViewParams, ViewSpec, as_specs, draw_views, groups_of

INDICES = np.arange(50)
SIZES = (np.full(50, 375), np.full(50, 500))
BYOL = (ViewSpec(num_views=1, blur_p=1.0), ViewSpec(num_views=1, blur_p=0.1, solarize_p=0.2))
DINO = (ViewSpec(224, scale=(0.4, 1.0)), ViewSpec(96, scale=(0.05, 0.4), num_views=8))


def draw(views) -> ViewParams:
    return draw_views(views, 7, 3, INDICES, *SIZES)


def equal(one: ViewParams, other: ViewParams) -> bool:
    names = [field.name for field in dataclasses.fields(ViewParams)]
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in names)


def test_specs_of_one_distribution_are_one_spec():
    """The number of a view decides its draws, not how the specs are cut."""
    assert equal(draw((ViewSpec(num_views=1), ViewSpec(num_views=2))), draw(ViewSpec(num_views=3)))


def test_views_are_numbered_through_all_groups():
    drawn, (large, small) = draw(DINO), groups_of(DINO)
    assert drawn.box.shape == (10, 50, 4)
    assert (large.views, small.views) == (slice(0, 2), slice(2, 10))
    assert equal(drawn[large.views], draw(DINO[0]))
    assert not (drawn[2:4].flip == drawn[0:2].flip).all()


def test_each_view_has_its_own_probabilities():
    drawn = draw(BYOL)
    assert (drawn.blur_sigma[0] > 0).all()
    assert 0 < (drawn.blur_sigma[1] > 0).mean() < 0.3
    assert np.isinf(drawn.solarize[0]).all()
    assert set(np.unique(drawn.solarize[1])) == {0.5, np.inf}


def test_groups_are_consecutive_views_of_one_size():
    (only,) = groups_of(BYOL)
    assert (only.size, only.first, only.num_views) == (224, 0, 2)
    assert [g.size for g in groups_of((ViewSpec(96), ViewSpec(224), ViewSpec(96)))] == [96, 224, 96]


def test_jitter_as_four_ranges():
    drawn = draw(ViewSpec(jitter=(0.4, 0.3, 0.2, 0.1)))
    low, high = drawn.jitter_factors.min((0, 1)), drawn.jitter_factors.max((0, 1))
    for bound, limit in ((low, [0.6, 0.7, 0.8, -0.1]), (high, [1.4, 1.3, 1.2, 0.1])):
        np.testing.assert_allclose(bound, limit, atol=0.05)
    assert equal(draw(ViewSpec(jitter=(0.8, 0.8, 0.8, 0.2))), draw(ViewSpec()))


@pytest.mark.parametrize("wrong", [[], [1], 224, "simclr", [ViewSpec(), None]])
def test_invalid_sets_of_views(wrong):
    with pytest.raises((TypeError, ValueError), match="views must"):
        as_specs(wrong)


def test_one_mean_and_std():
    with pytest.raises(ValueError, match="views must have one std"):
        as_specs((ViewSpec(), ViewSpec(std=(1.0, 1.0, 1.0))))
    with pytest.raises(ValueError, match="at most 64"):
        as_specs([ViewSpec(num_views=13)] * 5)


@pytest.mark.parametrize(
    "wrong",
    [
        {"blur_p": (1.0, 0.1)},
        {"flip_p": True},
        {"scale": 0.5},
        {"scale": (0.1, "1")},
        {"jitter": (0.4, 0.4, 0.4)},
        {"jitter": (0.4, 0.4, 0.4, 0.6)},
        {"solarize_p": 1.5},
        {"solarize_threshold": 128},
        {"center_crop_fraction": 0},
        {"num_views": "2"},
        {"size": None},
    ],
    ids=str,
)
def test_a_wrong_value_is_named(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=rf"ViewSpec\.{name} is"):
        ViewSpec(**wrong)


def test_names_of_version_0_1():
    with pytest.warns(DeprecationWarning, match="num_views"):
        old = ViewSpec(views=3)
    with pytest.warns(DeprecationWarning, match="center_crop_fraction"):
        assert ViewSpec.center(224).center_share == 0.875
    with pytest.warns(DeprecationWarning, match="jitter_factors"):
        assert draw(old).factors.shape == (3, 50, 4)
    saved = dataclasses.asdict(ViewSpec(96, num_views=3)) | {"views": 3, "center_share": None}
    for name in ("num_views", "center_crop_fraction", "jitter", "solarize_p", "solarize_threshold"):
        del saved[name]
    assert ViewSpec.from_saved(saved) == ViewSpec(96, num_views=3)
    with pytest.raises(ValueError, match="'zoom'"):
        ViewSpec.from_saved(saved | {"zoom": 1})
