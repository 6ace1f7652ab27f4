"""Presets against the numbers of their papers and of the authors' code."""

import inspect
import re

import numpy as np
import pytest
from PIL import Image, ImageOps

from pipelines.views import IMAGENET_MEAN, IMAGENET_STD, PRESETS, ViewSpec, as_specs, draw_views, groups_of

STRONG = (0.8, 0.8, 0.8, 0.2)
MODERATE = (0.4, 0.4, 0.4, 0.1)
WEAK_COLOR = (0.4, 0.4, 0.2, 0.1)
# size, scale of the crop, jitter (brightness, contrast, saturation, hue), blur_p, solarize_p of each view
SOURCES = {
    # google-research/simclr: FLAGS.color_jitter_strength = 1, crop area 0.08 to 1
    "simclr": [(224, (0.08, 1.0), STRONG, 0.5, 0.0)] * 2,
    # facebookresearch/moco, main_moco.py, --aug-plus
    "moco_v2": [(224, (0.2, 1.0), MODERATE, 0.5, 0.0)] * 2,
    # facebookresearch/simsiam, main_simsiam.py
    "simsiam": [(224, (0.2, 1.0), MODERATE, 0.5, 0.0)] * 2,
    # google-deepmind/deepmind-research, byol/utils/augmentations.py and dataset.py
    "byol": [(224, (0.08, 1.0), WEAK_COLOR, 1.0, 0.0), (224, (0.08, 1.0), WEAK_COLOR, 0.1, 0.2)],
    # facebookresearch/barlowtwins, main.py: transform and transform_prime
    "barlow_twins": [(224, (0.08, 1.0), WEAK_COLOR, 1.0, 0.0), (224, (0.08, 1.0), WEAK_COLOR, 0.1, 0.2)],
    # facebookresearch/vicreg, augmentations.py: transform and transform_prime
    "vicreg": [(224, (0.08, 1.0), WEAK_COLOR, 1.0, 0.0), (224, (0.08, 1.0), WEAK_COLOR, 0.1, 0.2)],
    # facebookresearch/swav, scripts/swav_800ep_pretrain.sh and src/multicropdataset.py
    "swav": [(224, (0.14, 1.0), STRONG, 0.5, 0.0)] * 2 + [(96, (0.05, 0.14), STRONG, 0.5, 0.0)] * 6,
    # facebookresearch/dino, main_dino.py: DataAugmentationDINO with the default arguments
    "dino": [
        (224, (0.4, 1.0), WEAK_COLOR, 1.0, 0.0),
        (224, (0.4, 1.0), WEAK_COLOR, 0.1, 0.2),
        *[(96, (0.05, 0.4), WEAK_COLOR, 0.5, 0.0)] * 8,
    ],
}
# shared by all sources: probabilities of flip, jitter and grayscale, sigma of the blur, aspect ratio of the crop
SHARED = (0.5, 0.8, 0.2, (0.1, 2.0), (3 / 4, 4 / 3))


def views_of(specs: tuple[ViewSpec, ...]) -> list[ViewSpec]:
    """The spec of each view, in the views' order."""
    return [spec for spec in specs for _ in range(spec.num_views)]


def test_every_preset_has_a_source():
    assert list(PRESETS) == list(SOURCES)
    for name, preset in PRESETS.items():
        assert preset.__name__ == name
        assert re.search(r"Source: .*arXiv [0-9]{4}\.[0-9]{5}|Source: .*\n.*arXiv", inspect.getdoc(preset)), (
            name
        )


@pytest.mark.parametrize("name", SOURCES)
def test_numbers_are_those_of_the_source(name):
    views = views_of(PRESETS[name]())
    found = [(v.size, v.scale, v.jitter_ranges, v.blur_p, v.solarize_p) for v in views]
    assert found == SOURCES[name]
    for view in views:
        assert (view.flip_p, view.jitter_p, view.gray_p, view.blur_sigma, view.ratio) == SHARED
        assert (view.mean, view.std, view.solarize_threshold) == (IMAGENET_MEAN, IMAGENET_STD, 0.5)


@pytest.mark.parametrize(
    ("name", "groups"),
    [
        ("simclr", [(224, 2)]),
        ("byol", [(224, 2)]),
        ("swav", [(224, 2), (96, 6)]),
        ("dino", [(224, 2), (96, 8)]),
    ],
)
def test_groups(name, groups):
    assert [(group.size, group.num_views) for group in groups_of(as_specs(PRESETS[name]()))] == groups


@pytest.mark.parametrize("name", SOURCES)
def test_draws_happen_as_often_as_the_source_says(name):
    count = 4000
    params = draw_views(PRESETS[name](), 0, 0, np.arange(count), np.full(count, 375), np.full(count, 500))
    areas = params.box[..., 2].astype(float) * params.box[..., 3] / (375 * 500)
    assert len(areas) == len(SOURCES[name])
    for v, (_, scale, jitter, blur_p, solarize_p) in enumerate(SOURCES[name]):
        # five standard errors of a share of 4,000 draws
        assert abs((params.blur_sigma[v] > 0).mean() - blur_p) < 0.04
        assert abs(np.isfinite(params.solarize[v]).mean() - solarize_p) < 0.032
        # a crop's sides are rounded to whole pixels
        assert scale[0] - 0.003 < areas[v].min() < scale[0] + 0.02 and areas[v].max() < scale[1] + 0.003
        reach = np.abs(params.jitter_factors[v] - (1, 1, 1, 0)).max(0)
        np.testing.assert_allclose(reach, jitter, rtol=0.01)


def test_small_images_and_changes():
    (cifar,) = PRESETS["simclr"](32)
    assert (cifar.jitter_ranges, cifar.blur_p) == ((0.4, 0.4, 0.4, 0.1), 0.0)
    for preset in PRESETS.values():
        assert {spec.mean for spec in preset(mean=(0.5, 0.5, 0.5))} == {(0.5, 0.5, 0.5)}
    assert [spec.size for spec in PRESETS["dino"](160, local_size=64, num_local_views=2)] == [160, 160, 64]
    assert sum(spec.num_views for spec in PRESETS["swav"](num_local_views=4)) == 6


def test_the_threshold_is_that_of_the_authors_who_solarize_bytes():
    """PIL inverts from 128 on, of 255; x >= 0.5 of x = byte/255 is the same set of bytes."""
    (threshold,) = {spec.solarize_threshold for spec in PRESETS["byol"]()}
    levels = np.arange(256, dtype=np.uint8)
    by_pil = np.asarray(ImageOps.solarize(Image.fromarray(levels[None])))[0]
    x = levels / 255
    ours = np.where(x >= threshold, 1 - x, x)
    np.testing.assert_array_equal(np.rint(ours * 255), by_pil)
