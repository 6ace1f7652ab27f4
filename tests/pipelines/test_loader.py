"""TwoViewLoader: the same indices, numbers and pixels whatever the threads and the ranks; and its arguments."""

import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from support.loader_support import HOST_ENGINES, assert_same, contents, loader

from pipelines import BetonReader, ViewSpec
from pipelines.engines import ENGINES


def test_options_of_the_engine(tiny_beton):
    with loader(tiny_beton, engine_options={"prefetch": 5}) as ours:
        assert ours._engine.prefetch == 5
    with pytest.raises(TypeError, match="prefecth"):
        loader(tiny_beton, engine_options={"prefecth": 5})
    with pytest.raises(TypeError, match="prefetch"):
        loader(tiny_beton, engine="torchvision", engine_options={"prefetch": 5})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"batch_size": 8.0}, "batch_size must be a whole number, at least 1; got 8.0"),
        ({"batch_size": 0}, "batch_size must be"),
        ({"size": (24, 24)}, r"size must be a whole number, at least 1; got \(24, 24\)"),
        ({"num_threads": 0}, "num_threads must be"),
        ({"engine_options": {"prefetch": -1}}, "prefetch must be a whole number, at least 1; got -1"),
        ({"dtype": torch.int32}, "dtype must be floating point, got torch.int32"),
        ({"dtype": "bfloat16"}, "dtype must be floating point, got 'bfloat16'"),
        ({"seed": 1.5}, "seed must be a whole number, at least 0; got 1.5"),
        ({"seed": "a"}, "seed must be a whole number, at least 0; got 'a'"),
        ({"rank": 0.5}, "rank must be a whole number, at least 0; got 0.5"),
        ({"world_size": 2.0}, "world_size must be a whole number, at least 1; got 2.0"),
        ({"device": "gpu"}, "device must be cpu, cuda or cuda:N, got 'gpu'"),
        ({"indices": np.ones(39, bool)}, r"a boolean for each of the 40 samples, got \(39,\)"),
        ({"indices": [], "drop_last": False}, "at least one; got an array"),
        ({"indices": [[1, 2]]}, "a list of samples"),
        ({"indices": [0.5, 1.5]}, "indices must be whole numbers, got float64"),
    ],
)
def test_wrong_arguments_are_named(tiny_beton, wrong, message):
    with pytest.raises(ValueError, match=message):
        loader(tiny_beton, **wrong)


def test_a_mask_of_samples(tiny_beton):
    mask = np.arange(40) % 3 == 0
    with loader(tiny_beton, indices=mask) as ours, loader(tiny_beton, indices=np.flatnonzero(mask)) as theirs:
        assert_same(contents(ours), contents(theirs))


@pytest.mark.parametrize("engine", HOST_ENGINES)
@pytest.mark.parametrize("other", [ViewSpec.simclr(32, num_views=1), ViewSpec.simclr(48, num_views=3)])
def test_an_iterator_keeps_its_views(tiny_beton, engine, other):
    """Whatever `set_epoch` says, and another iterator does, before it ends."""
    with loader(tiny_beton, engine=engine) as ours:
        expected = contents(ours)
        ours.set_epoch(0)
        begun, not_begun = iter(ours), iter(ours)
        first = next(begun)
        ours.set_epoch(5, spec=other)
        others = contents(ours)
        assert_same(contents([first, *begun]), expected)
        assert {(batch[0], batch[4].shape[0]) for batch in others} == {(5, other.num_views)}
        # an iteration begins when its first batch is taken
        assert {(batch[0], batch[4].shape[0]) for batch in contents(not_begun)} == {(6, other.num_views)}


def test_a_system_that_does_not_say_where_a_process_may_run(tiny_beton, monkeypatch):
    """macOS, for one."""
    monkeypatch.delattr("os.sched_getaffinity")
    with loader(tiny_beton, num_threads=None) as ours:
        assert ours._engine.num_threads == os.cpu_count()


def test_epochs_that_have_no_numbers(tiny_beton):
    with loader(tiny_beton) as ours:
        for epoch in (-1, 1 << 32, 1.5):
            with pytest.raises(ValueError, match="epoch must be in"):
                ours.set_epoch(epoch)
        ours.set_epoch((1 << 32) - 1)
        assert next(iter(ours)).epoch == (1 << 32) - 1


@pytest.mark.parametrize("engine", HOST_ENGINES)
def test_batches_are_as_documented(tiny_beton, engine):
    with loader(tiny_beton, engine=engine) as ours, BetonReader(tiny_beton) as reader:
        batches = list(ours)
        assert len(batches) == len(ours) == len(reader) // 6
        for step, batch in enumerate(batches):
            views, labels = batch
            assert views.shape == (2, 6, 3, 32, 32)
            assert views.dtype == torch.float32
            assert views[0].is_contiguous(memory_format=torch.channels_last)
            assert labels.tolist() == reader.labels[batch.indices].tolist()
            assert (batch.epoch, batch.step, len(batch)) == (0, step, 6)
        seen = torch.cat([batch.indices for batch in batches])
        assert len(seen.unique()) == len(seen)


@pytest.mark.parametrize("engine", HOST_ENGINES)
def test_any_number_of_threads(tiny_beton, engine):
    expected = contents(loader(tiny_beton, num_threads=1))
    for num_threads in (1, 2, 7):
        assert_same(contents(loader(tiny_beton, engine=engine, num_threads=num_threads)), expected)


def test_ranks_together_see_the_batches_of_one(tiny_beton):
    alone = contents(loader(tiny_beton, batch_size=8, drop_last=False))
    for world_size in (2, 4):
        ranks = [
            contents(
                loader(
                    tiny_beton, batch_size=8 // world_size, rank=rank, world_size=world_size, drop_last=False
                )
            )
            for rank in range(world_size)
        ]
        for step, (_, _, indices, labels, views) in enumerate(alone):
            shares = [rank[step] for rank in ranks if step < len(rank)]
            assert sum((share[2] for share in shares), []) == indices  # noqa: RUF017  # a handful
            assert sum((share[3] for share in shares), []) == labels  # noqa: RUF017
            assert torch.equal(torch.cat([share[4] for share in shares], 1), views)


def test_epochs(tiny_beton):
    ours = loader(tiny_beton)
    first, second = contents(ours), contents(ours)
    assert (first[0][0], second[0][0]) == (0, 1)
    assert first[0][2] != second[0][2]
    ours.set_epoch(0)
    assert_same(contents(ours), first)
    assert_same(contents(ours), second)  # iterating again goes on


def test_progressive_resolution(tiny_beton):
    ours = loader(tiny_beton)
    small = contents(ours)
    ours.set_epoch(0, spec=replace(ours.spec, size=48))
    large = contents(ours)
    assert [batch[2] for batch in small] == [batch[2] for batch in large]
    assert large[0][4].shape[-2:] == (48, 48)


def test_batches_belong_to_the_receiver(tiny_beton):
    kept = list(loader(tiny_beton))
    copies = [batch.views.clone() for batch in loader(tiny_beton)]
    assert all(torch.equal(batch.views, copy) for batch, copy in zip(kept, copies, strict=True))
    kept[0].views.zero_()
    assert torch.equal(kept[1].views, copies[1])


def test_a_subset(tiny_beton):
    chosen = [1, 5, 6, 17, 20, 21, 30]
    ours = loader(tiny_beton, indices=chosen, batch_size=3, drop_last=False)
    assert sorted(torch.cat([batch.indices for batch in ours]).tolist()) == chosen


@pytest.mark.parametrize("views", [1, 3])
def test_any_number_of_views(tiny_beton, views):
    ours = loader(tiny_beton, size=None, spec=ViewSpec.simclr(24, num_views=views))
    theirs = loader(tiny_beton, size=None, spec=ViewSpec.simclr(24))
    batch, other = next(iter(ours)), next(iter(theirs))
    assert batch.views.shape == (views, 6, 3, 24, 24)
    assert torch.equal(batch.views[0], other.views[0])  # a view's numbers do not depend on how many there are


def test_a_corrupt_sample_is_replaced(corrupt_beton):
    """Sample 4 is truncated, though its header looks fine; sample 5 replaces it, with its own index and numbers."""
    clean = ViewSpec.center(32)
    with pytest.warns(RuntimeWarning, match="sample 4"):
        batches = list(loader(corrupt_beton, size=None, spec=clean, order="sequential"))
    with BetonReader(corrupt_beton) as reader:
        assert batches[0].indices.tolist() == [0, 1, 2, 3, 5, 5]
        assert batches[0].labels.tolist() == reader.labels[[0, 1, 2, 3, 5, 5]].tolist()
    assert torch.equal(batches[0].views[:, 4], batches[0].views[:, 5])


@pytest.mark.parametrize("engine", HOST_ENGINES)
def test_replacements_do_not_depend_on_threads(corrupt_beton, engine):
    with pytest.warns(RuntimeWarning):
        runs = [contents(loader(corrupt_beton, engine=engine, num_threads=num)) for num in (1, 4)]
        expected = contents(loader(corrupt_beton))
    for run in runs:
        assert_same(run, expected)


@pytest.mark.parametrize("engine", [*HOST_ENGINES, "torchvision"])
def test_a_file_of_corrupt_samples_raises(hopeless_beton, engine):
    with (
        pytest.warns(RuntimeWarning),
        pytest.raises(ValueError, match="40 corrupt samples, the last") as error,
    ):
        list(loader(hopeless_beton, engine=engine, batch_size=1, num_threads=1))
    assert "\n" not in str(error.value)


def test_bad_arguments(tiny_beton, tmp_path):
    for message, wrong in {
        "do not fill one batch of 1000": {"batch_size": 1000},
        "no engine 'turbo'; there are native": {"engine": "turbo"},
        "order must be one of": {"order": "shuffled"},
        "rank must be": {"rank": 2, "world_size": 2},
        "batch_size must be": {"batch_size": 0},
        "num_threads": {"num_threads": 0},
        "size and spec|spec and size": {"spec": ViewSpec()},
        "size must be": {"size": 0},
        "more than once": {"indices": [1, 1, 2]},
        "must lie in": {"indices": [1, 99999]},
        "seed must be": {"seed": -1},
    }.items():
        with pytest.raises(ValueError, match=message):
            loader(tiny_beton, **wrong)
    with pytest.raises(FileNotFoundError):
        loader(tmp_path / "none.beton")


def test_engines_are_listed():
    assert set(HOST_ENGINES) < set(ENGINES)


def test_native_equals_torchvision_end_to_end(tiny_beton):
    """Crops within one gray level; no pixel bound holds after the jitter, so the views are compared without it."""
    spec = ViewSpec.crop_flip(64, num_views=2, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    ours = loader(tiny_beton, size=None, spec=spec)
    theirs = loader(tiny_beton, size=None, spec=spec, engine="torchvision")
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one.indices, other.indices)
        assert (one.views - other.views).abs().max() * 255 < 1.01
