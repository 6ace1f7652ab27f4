"""A loader whose views are a function of the epoch: progressive resolution on every engine, and its states."""

import json

import pytest
import torch
from support.loader_support import assert_same, contents

from pipelines import ViewLoader, ViewSpec

SPECS = (ViewSpec(size=24, scale=(0.3, 1.0)), ViewSpec(size=40), ViewSpec(size=32, gray_p=1.0))
PACKAGES = {"ffcv": "ffcv", "dali": "nvidia.dali"}


def views_of(epoch: int) -> ViewSpec:
    return SPECS[min(epoch // 2, 2)]


def loader(file, views=views_of, **changes) -> ViewLoader:
    return ViewLoader(file, **{"batch_size": 7, "views": views, "seed": 5, "num_threads": 2, **changes})


@pytest.mark.parametrize("engine", ["native", "resident", "torchvision", "ffcv", "dali"])
def test_each_epoch_is_that_of_a_loader_with_its_views(tiny_beton, engine, require_package):
    if engine in PACKAGES:
        require_package(PACKAGES[engine])
    with loader(tiny_beton, engine=engine) as ours:
        for epoch in range(4):
            with loader(tiny_beton, views_of(epoch), engine=engine) as plain:
                plain.set_epoch(epoch)
                assert_same(contents(ours), contents(plain))
            assert ours.views == (views_of(epoch),) == ours.views_of(epoch)


def test_groups_and_their_number_may_change(tiny_beton):
    def views(epoch: int):
        return (SPECS[0], SPECS[1]) if epoch else SPECS[0]

    with loader(tiny_beton, views) as ours:
        assert next(iter(ours)).views.shape == (2, 7, 3, 24, 24)
        assert [group.shape for group in next(iter(ours)).views] == [(2, 7, 3, 24, 24), (2, 7, 3, 40, 40)]


@pytest.mark.parametrize("stop", [1, 5, 9, 10, 12, 20])
def test_it_resumes_in_mid_epoch_and_between_two_sizes(tiny_beton, stop):
    """5 batches an epoch: after 10 and 20 the next views have another size."""
    expected = []
    with loader(tiny_beton) as ours:
        for _ in range(5):
            expected += contents(ours)
    with loader(tiny_beton) as first:
        seen = []
        while len(seen) < stop:
            for batch in first:
                seen += contents([batch])
                if len(seen) == stop:
                    state = json.loads(json.dumps(first.state_dict()))
                    break
    assert state["views"][0]["size"] == views_of(state["epoch"]).size
    with loader(tiny_beton) as resumed:
        resumed.load_state_dict(state)
        assert resumed.views == (views_of(state["epoch"]),)
        while len(seen) < 25:
            seen += contents(resumed)
    assert_same(seen, expected)


def test_a_state_of_another_schedule_is_refused(tiny_beton):
    with loader(tiny_beton) as ours:
        ours.set_epoch(3)
        state = ours.state_dict()
        # without a function, the state is that of the epoch's views
        with loader(tiny_beton, SPECS[1], seed=5) as plain:
            plain.load_state_dict(state)
            assert plain.state_dict() == state
        with (
            loader(tiny_beton, lambda epoch: SPECS[0]) as other,
            pytest.raises(ValueError, match="another views"),
        ):
            other.load_state_dict(state)


def test_set_epoch_pins_and_replaces(tiny_beton):
    with loader(tiny_beton) as ours:
        ours.set_epoch(2)
        assert ours.views == (SPECS[1],)
        assert next(iter(ours)).views.shape[-1] == 40
        ours.set_epoch(4, SPECS[0])
        assert [next(iter(ours)).views.shape[-1] for _ in range(2)] == [24, 24]


def test_ranks_see_the_batches_of_one(tiny_beton):
    with loader(tiny_beton, batch_size=8) as one:
        expected = [contents(one) for _ in range(3)]
    for rank in range(2):
        with loader(tiny_beton, batch_size=4, rank=rank, world_size=2) as ours:
            for epoch in range(3):
                for mine, whole in zip(contents(ours), expected[epoch], strict=True):
                    assert mine[2] == whole[2][4 * rank : 4 * rank + 4]
                    assert torch.equal(mine[4], whole[4][:, 4 * rank : 4 * rank + 4])


def test_what_a_function_must_return(tiny_beton):
    with pytest.raises(TypeError, match="views must be a ViewSpec"):
        loader(tiny_beton, lambda epoch: 32)
    with pytest.raises(ValueError, match="give one of views, size and spec"):
        loader(tiny_beton, size=32)
