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


def test_ranks_left_out_under_a_launcher(tiny_beton, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.warns(RuntimeWarning, match="world_size"):
        loader(tiny_beton).close()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loader(tiny_beton, world_size=1).close()
        loader(tiny_beton, rank=1, world_size=2).close()


def test_other_views_with_the_same_seed(tiny_beton, other_beton):
    other = ViewSpec.simclr(48)
    with loader(tiny_beton) as ours:
        with pytest.warns(RuntimeWarning, match=r"views=\(spec_a, spec_b\)"):
            loader(tiny_beton, size=None, spec=other).close()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            # what is another seed, file or set of samples; the same views; views without anything random
            loader(tiny_beton, size=None, spec=other, seed=4).close()
            loader(other_beton, size=None, spec=other).close()
            loader(tiny_beton).close()
            loader(tiny_beton, size=None, spec=ViewSpec.center(48)).close()
        ours.close()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with loader(tiny_beton, size=None, spec=other, indices=np.arange(20)):
                loader(tiny_beton, indices=np.arange(20, 40)).close()


def test_a_schedule_that_fits(tiny_beton):
    """40 images in batches of 7: 5 batches an epoch, whatever 3 · 40 / 7 is."""
    with loader(tiny_beton, batch_size=7) as ours:
        steps = sum(1 for _ in range(3) for _ in ours)
        assert ours.num_steps(3) == steps == 15
        assert ours.num_steps(0.5) == 2


def test_default_views():
    with pytest.raises(ValueError, match="views and size"):
        ViewLoader("none.beton", 4, size=32, views=ViewSpec())
