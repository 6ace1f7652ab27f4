"""ViewLoader: when an epoch begins, ranks that are left out, loaders whose draws coincide, and schedules that fit."""

import warnings

import numpy as np
import pytest
from support.loader_support import loader

from pipelines import ViewLoader, ViewSpec


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)


def test_an_epoch_begins_when_its_first_batch_is_taken(tiny_beton):
    """Lightning calls iter once more than it trains."""
    with loader(tiny_beton) as ours:
        iter(ours)
        begun = iter(ours)
        assert next(begun).epoch == 0
        assert next(iter(ours)).epoch == 1
        assert next(begun).step == 1


def warned(*arguments, **changes) -> list[str]:
    """Messages of the warnings that making a loader issues."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loader(*arguments, **changes).close()
    return [str(warning.message) for warning in caught]


def test_ranks_left_out_under_a_launcher(tiny_beton, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    (message,) = warned(tiny_beton)
    assert message.startswith("world_size is left out, but WORLD_SIZE=2")
    assert warned(tiny_beton, world_size=1) == []
    assert warned(tiny_beton, rank=1, world_size=2) == []


def test_other_views_with_the_same_seed(tiny_beton, other_beton):
    other = {"size": None, "spec": ViewSpec.simclr(48)}
    with loader(tiny_beton) as ours:
        (message,) = warned(tiny_beton, **other)
        assert "the same seed and different views" in message and "views=(spec_a, spec_b)" in message
        # no draws coincide: another seed, another file, the same views, views without anything random
        assert warned(tiny_beton, **other, seed=4) == []
        assert warned(other_beton, **other) == []
        assert warned(tiny_beton) == []
        assert warned(tiny_beton, size=None, spec=ViewSpec.center(48)) == []
        ours.close()
        # a closed loader draws nothing, and other samples have other draws
        with loader(tiny_beton, **other, indices=np.arange(20)):
            assert warned(tiny_beton, indices=np.arange(20, 40)) == []


def test_a_schedule_that_fits(tiny_beton):
    """40 images in batches of 7: 5 batches an epoch, whatever 3 · 40 / 7 is."""
    with loader(tiny_beton, batch_size=7) as ours:
        steps = sum(1 for _ in range(3) for _ in ours)
        assert ours.num_steps(3) == steps == 15
        assert ours.num_steps(0.5) == 2


def test_default_views():
    with pytest.raises(ValueError, match="views and size"):
        ViewLoader("none.beton", 4, size=32, views=ViewSpec())
