"""TwoViewLoader: where it was, and going on there, also on other ranks."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
from support.loader_support import assert_same, contents, loader

from pipelines import TwoViewLoader, ViewSpec


def test_ranks_save_the_same_state(tiny_beton):
    """With 40 samples, 2 ranks of 13 each share the last 14; with 3 ranks, two have no sample of the last batch."""
    for world_size in (2, 3):
        ranks = [
            loader(tiny_beton, batch_size=13, rank=rank, world_size=world_size, drop_last=False)
            for rank in range(world_size)
        ]
        for each in ranks:
            list(each)
        states = [each.state_dict() for each in ranks]
        assert states == world_size * [states[0]]
        assert (states[0]["epoch"], states[0]["consumed"]) == (1, 0)


def test_a_state_may_be_kept_as_json(tiny_beton):
    with loader(tiny_beton) as ours:
        next(iter(ours))
        state = json.loads(json.dumps(ours.state_dict()))
        rest = contents(loader_at(tiny_beton, state))
        assert rest[0][:2] == (0, 1)


def test_a_state_of_numpys_numbers_may_be_kept_as_json(tiny_beton):
    spec = ViewSpec(size=np.int64(32), flip_p=np.float32(0.5), scale=np.array([0.25, 1.0]), mean=[0.5] * 3)
    with loader(tiny_beton, size=None, spec=spec, seed=np.int64(3)) as ours:
        ours.set_epoch(np.int64(3))
        state = json.loads(json.dumps(ours.state_dict()))
        ours.load_state_dict(state)
        assert (state["epoch"], state["seed"], state["views"][0]["scale"]) == (3, 3, [0.25, 1.0])
        plain = ViewSpec(size=32, flip_p=0.5, scale=(0.25, 1.0), mean=(0.5, 0.5, 0.5))
        assert_same(contents(ours), contents(loader_at(tiny_beton, state, size=None, spec=plain)))


def loader_at(file: Path, state: dict, **changes) -> TwoViewLoader:
    made = loader(file, **changes)
    made.load_state_dict(state)
    return made


def test_an_epoch_that_was_set_is_in_the_state(tiny_beton):
    with loader(tiny_beton) as ours:
        ours.set_epoch(3)
        assert contents(loader_at(tiny_beton, ours.state_dict()))[0][0] == 3


@pytest.mark.parametrize("state", [None, {}, {"epoch": 0, "consumed": 0}])
def test_invalid_states(tiny_beton, state):
    with loader(tiny_beton) as ours, pytest.raises(ValueError, match="this is not what state_dict"):
        ours.load_state_dict(state)


@pytest.mark.parametrize("consumed", [-5, 41, 2.5, "x"])
def test_states_beyond_the_epoch(tiny_beton, consumed):
    with loader(tiny_beton) as ours, pytest.raises(ValueError, match=f"after {consumed!r} samples of 40"):
        ours.load_state_dict({**ours.state_dict(), "consumed": consumed})


@pytest.mark.parametrize("epoch", [-1, 1.5, "x", None])
def test_states_of_no_epoch(tiny_beton, epoch):
    with loader(tiny_beton) as ours, pytest.raises(ValueError, match=f"epoch must be in .* got {epoch!r}"):
        ours.load_state_dict({**ours.state_dict(), "epoch": epoch})


@pytest.mark.parametrize("order", ["random", "sequential", "blocks"])
def test_resume_in_mid_epoch(tiny_beton, order):
    straight = loader(tiny_beton, order=order)
    expected = contents(straight) + contents(straight)
    for stop in (0, 1, 4, len(straight), len(straight) + 2):
        first = loader(tiny_beton, order=order)
        seen = []
        epochs = [iter(first), iter(first)]
        while len(seen) < stop:
            batch = next(epochs[0], None)
            if batch is None:
                epochs.pop(0)
            else:
                seen += contents([batch])
        state = first.state_dict()
        resumed = loader(tiny_beton, order=order, num_threads=3)
        resumed.load_state_dict(state)
        while len(seen) < len(expected):
            seen += contents(resumed)
        assert_same(seen, expected)


def test_resume_on_another_number_of_ranks(tiny_beton):
    """8 samples a step on one rank, then on two: the rest of the epoch is the same."""
    expected = contents(loader(tiny_beton, batch_size=8))
    first = loader(tiny_beton, batch_size=8)
    batches = iter(first)
    next(batches), next(batches)
    ranks = []
    for rank in range(2):
        resumed = loader(tiny_beton, batch_size=4, rank=rank, world_size=2)
        resumed.load_state_dict(first.state_dict())
        ranks.append(contents(resumed))
    assert [one[2] + other[2] for one, other in zip(*ranks, strict=True)] == [
        batch[2] for batch in expected[2:]
    ]


def test_state_counts_the_batch_yielded_not_the_one_prefetched(tiny_beton):
    ours = loader(tiny_beton)
    batches = iter(ours)
    next(batches)
    time.sleep(0.3)  # the workers are two batches ahead now
    assert ours.state_dict()["consumed"] == 6


def test_a_state_of_something_else_is_refused(tiny_beton, other_beton):
    state = loader(tiny_beton).state_dict()
    for name, other in {
        "seed": loader(tiny_beton, seed=4),
        "order": loader(tiny_beton, order="blocks"),
        "views": loader(tiny_beton, size=40),
        "fingerprint": loader(other_beton),
        "indices": loader(tiny_beton, indices=range(20)),
    }.items():
        with pytest.raises(ValueError, match=f"another {name}"):
            other.load_state_dict(state)


def test_a_state_with_the_fingerprint_of_version_0_1_resumes(tiny_beton, other_beton):
    ours = loader(tiny_beton)
    next(iter(ours))
    old = {**ours.state_dict(), "fingerprint": ours.reader._legacy_fingerprint}
    del old["checksum"]  # 0.1 wrote none
    resumed = loader(tiny_beton)
    resumed.load_state_dict(old)
    assert resumed.state_dict() == ours.state_dict(), "what is saved next has the new one"
    with pytest.raises(ValueError, match="another fingerprint"):
        loader(other_beton).load_state_dict(old)


@pytest.mark.parametrize("change", [{"consumed": 12}, {"epoch": 1}, {"checksum": "0" * 16}])
def test_a_corrupt_state_is_refused(tiny_beton, change):
    ours = loader(tiny_beton)
    next(iter(ours))
    saved = json.loads(json.dumps(ours.state_dict()))
    ours.load_state_dict(saved)
    with pytest.raises(ValueError, match="corrupt"):
        ours.load_state_dict({**saved, **change})
