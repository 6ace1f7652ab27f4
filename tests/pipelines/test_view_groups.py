"""Views of several sizes: groups in every engine, and what a batch of them is."""

from dataclasses import fields

import numpy as np
import pytest
import torch
from support.loader_support import HOST_ENGINES
from support.oracle import augment_oracle, crop_oracle

from pipelines import BetonReader, TwoViewLoader, ViewLoader, ViewSpec
from pipelines.ops.augment import cpu
from pipelines.views import groups_of

SMALL_CROPS = (ViewSpec(size=40), ViewSpec(size=24, scale=(0.05, 0.3), num_views=3, blur_p=1.0))
MULTI_CROP = (ViewSpec.simclr(224), ViewSpec.simclr(96, num_views=6, scale=(0.05, 0.14)))
PACKAGES = {"ffcv": "ffcv", "dali": "nvidia.dali"}


def loader(file, views=SMALL_CROPS, **changes) -> ViewLoader:
    return ViewLoader(file, **{"batch_size": 7, "views": views, "seed": 5, "num_threads": 2, **changes})


def test_the_old_name_is_the_same_class():
    assert TwoViewLoader is ViewLoader


def test_a_tensor_per_group(tiny_beton):
    with loader(tiny_beton) as ours:
        batch = next(iter(ours))
    large, small = batch.views
    assert (large.shape, small.shape) == ((2, 7, 3, 40, 40), (3, 7, 3, 24, 24))
    assert all(view.is_contiguous(memory_format=torch.channels_last) for view in (*large, *small))
    assert {getattr(batch.params, field.name).shape[:2] for field in fields(batch.params)} == {(5, 7)}


def test_consecutive_specs_of_one_size_are_one_tensor(tiny_beton):
    byol = (ViewSpec(size=32, num_views=1, blur_p=1.0), ViewSpec(size=32, num_views=1, solarize_p=1.0))
    with loader(tiny_beton, byol) as ours, loader(tiny_beton, list(byol), seed=5) as theirs:
        batch = next(iter(ours))
        assert batch.views.shape == (2, 7, 3, 32, 32)
        assert torch.equal(next(iter(theirs)).views, batch.views)
        assert np.isfinite(batch.params.solarize[1]).all() and np.isinf(batch.params.solarize[0]).all()


def test_views_are_numbered_through_all_groups(tiny_beton):
    """The first group's draws, and pixels, are those of a loader that has no other."""
    with loader(tiny_beton) as ours, loader(tiny_beton, SMALL_CROPS[0], world_size=1) as alone:
        for batch, other in zip(ours, alone, strict=True):
            assert torch.equal(batch.views[0], other.views)
            np.testing.assert_array_equal(batch.params.box[:2], other.params.box)


@pytest.mark.parametrize("engine", ["native", "resident", "torchvision", "ffcv", "dali"])
def test_engines_agree_on_the_crops(tiny_beton, engine, require_package):
    if engine in PACKAGES:
        require_package(PACKAGES[engine])
    with (
        loader(tiny_beton, engine=engine, augment=False, drop_last=False) as ours,
        loader(tiny_beton, augment=False, drop_last=False) as theirs,
    ):
        pairs = list(zip(ours, theirs, strict=True))
    assert len(pairs) == 6
    for batch, other in pairs:
        assert batch.indices.tolist() == other.indices.tolist()
        for crops, expected in zip(batch.views, other.views, strict=True):
            assert crops.dtype == torch.uint8 and crops.shape == expected.shape
            off = (crops.int() - expected.int()).abs()
            # DALI treats the outermost row and column of pixels in its own way
            assert off[:, :, 1:-1, 1:-1].max() <= 1
            assert engine == "dali" or off.max() <= 1


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["native", "resident", "torchvision", "ffcv", "dali"])
def test_crops_of_photos_are_the_oracles(photo_beton, engine, require_package):
    """2 x 224 and 6 x 96 of 250 photos: one decode, two groups, torchvision's word."""
    if engine in PACKAGES:
        require_package(PACKAGES[engine])
    mean, count = 0.0, 0
    with (
        loader(photo_beton, MULTI_CROP, engine=engine, augment=False, batch_size=25, drop_last=False) as ours,
        BetonReader(photo_beton) as reader,
    ):
        for batch in ours:
            views = [view.numpy() for group in batch.views for view in group]
            for row, index in enumerate(batch.indices.tolist()):
                image, _ = reader[index]
                for view, box, flip in zip(
                    views, batch.params.box[:, row], batch.params.flip[:, row], strict=True
                ):
                    off = np.abs(view[row].astype(int) - crop_oracle(image, box, flip, view.shape[1]))
                    mean, count = mean + off.mean(), count + 1
                    assert (off[1:-1, 1:-1] if engine == "dali" else off).max() <= 1
    assert count == 8 * 250
    assert mean / count <= 0.02


@pytest.mark.parametrize("engine", HOST_ENGINES)
def test_augmentation_is_the_oracles(cifar_beton_small, engine):
    """Both groups of 200 images, from the same crops."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (SMALL_CROPS[0].mean, SMALL_CROPS[0].std))
    chosen = np.arange(200)
    settings = {"engine": engine, "indices": chosen, "batch_size": 50}
    with (
        loader(cifar_beton_small, **settings) as ours,
        loader(cifar_beton_small, augment=False, **settings) as raw,
    ):
        for batch, crops in zip(ours, raw, strict=True):
            for group, views, pixels in zip(groups_of(SMALL_CROPS), batch.views, crops.views, strict=True):
                drawn = batch.params[group.views]
                for view in range(group.num_views):
                    for row in range(0, len(batch), 5):
                        expected = augment_oracle(pixels[view, row].numpy(), drawn[view, row], group.specs[0])
                        off = (views[view, row] * std + mean - expected).abs().max() * 255
                        assert off <= 0.25 + 1e-3


@pytest.mark.parametrize("engine", HOST_ENGINES)
def test_views_are_those_of_the_crops(tiny_beton, engine):
    """What `augment=False` yields, augmented by the numbers of `Batch.params`, are the loader's own views."""
    with loader(tiny_beton, engine=engine) as ours, loader(tiny_beton, augment=False) as raw:
        for batch, crops in zip(ours, raw, strict=True):
            for group, views, pixels in zip(groups_of(SMALL_CROPS), batch.views, crops.views, strict=True):
                expected = cpu.augment(pixels, crops.params[group.views], group.specs[0])
                assert torch.equal(views, expected)


@pytest.mark.parametrize("engine", HOST_ENGINES)
def test_a_corrupt_sample_is_replaced_in_all_groups(corrupt_beton, engine):
    center = (ViewSpec.center(40), ViewSpec.center(24))
    with (
        pytest.warns(RuntimeWarning, match="sample 4"),
        loader(corrupt_beton, center, engine=engine, order="sequential") as ours,
    ):
        batch = next(iter(ours))
    assert batch.indices.tolist() == [0, 1, 2, 3, 5, 5, 6]
    assert all(torch.equal(views[:, 4], views[:, 5]) for views in batch.views)


@pytest.mark.parametrize("engine", HOST_ENGINES)
def test_memory_is_used_again_and_kept_batches_stay(tiny_beton, engine):
    with loader(tiny_beton, engine=engine) as ours, loader(tiny_beton, engine=engine) as theirs:
        kept = list(ours)
        for batch, other in zip(theirs, kept, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(batch.views, other.views, strict=True))


def test_resume_and_other_sets_of_views(tiny_beton):
    with loader(tiny_beton) as ours:
        batches = iter(ours)
        next(batches)
        state = ours.state_dict()
        rest = [batch.views for batch in batches]
    with loader(tiny_beton, engine="resident") as resumed:
        resumed.load_state_dict(state)
        for batch, expected in zip(resumed, rest, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(batch.views, expected, strict=True))
    with loader(tiny_beton, SMALL_CROPS[::-1], seed=5) as other, pytest.raises(ValueError, match="views"):
        other.load_state_dict(state)


def test_a_batch_moves_and_is_indexed_like_a_pair(tiny_beton):
    with loader(tiny_beton) as ours:
        batch = next(iter(ours))
    moved = batch.to("meta", non_blocking=True)
    assert {tensor.device.type for tensor in (*moved.views, moved.labels, moved.indices)} == {"meta"}
    assert moved.params is batch.params and (moved.epoch, moved.step) == (0, 0)
    assert batch[0] is batch.views and batch[1] is batch.labels
    views, labels = batch
    assert views is batch.views and labels is batch.labels


@pytest.mark.parametrize("wrong", [[1, 2], "simclr", [ViewSpec(), "x"], ()])
@pytest.mark.parametrize("name", ["views", "spec"])
def test_wrong_views_are_named(tiny_beton, name, wrong):
    with pytest.raises((TypeError, ValueError), match="views") as error:
        ViewLoader(tiny_beton, 4, **{name: wrong})
    assert "\n" not in str(error.value)


def test_set_epoch_with_other_views(tiny_beton):
    with loader(tiny_beton, ViewSpec(size=32)) as ours:
        ours.set_epoch(1, views=SMALL_CROPS)
        assert [view.shape[-1] for view in next(iter(ours)).views] == [40, 24]
        ours.set_epoch(1, spec=ViewSpec(size=16))
        assert next(iter(ours)).views.shape[-1] == 16


def test_crops_have_no_type_of_views(tiny_beton):
    with pytest.raises(ValueError, match="dtype"):
        loader(tiny_beton, augment=False, dtype=torch.float32)
    with pytest.raises(ValueError, match="augment"):
        loader(tiny_beton, augment=False, engine_options={"augment": True})
