"""The order of an epoch and its cut into plans: independence of ranks, resume, and the mixing of "blocks"."""

import numpy as np
import pytest

from pipelines import planner as planner_module
from pipelines.planner import BatchPlanner, epoch_order, order_pieces
from pipelines.views import ViewSpec


def planner(num_samples=103, batch_size=8, **changes) -> BatchPlanner:
    sizes = np.full(num_samples, 40)
    return BatchPlanner(
        heights=sizes, widths=sizes + 3, specs=(ViewSpec.simclr(32),), batch_size=batch_size, **changes
    )


@pytest.mark.parametrize("order", ["random", "sequential", "blocks"])
@pytest.mark.parametrize("num_samples", [1, 63, 64, 65, 9000, 20000])  # around a block, and above one window
def test_an_epoch_is_a_permutation(order, num_samples):
    assert np.array_equal(np.sort(epoch_order(num_samples, 7, 2, order)), np.arange(num_samples))


@pytest.mark.parametrize("order", ["random", "blocks"])
def test_epochs_and_seeds_differ(order):
    base = epoch_order(1000, 0, 0, order)
    for other in (epoch_order(1000, 0, 1, order), epoch_order(1000, 1, 0, order)):
        assert (base == other).mean() < 0.02
    assert np.array_equal(base, epoch_order(1000, 0, 0, order))


def test_golden_order():
    assert epoch_order(10, 2026, 3, "random").tolist() == GOLDEN_RANDOM
    assert epoch_order(200, 2026, 3, "blocks")[:10].tolist() == GOLDEN_BLOCKS


@pytest.mark.parametrize("order", ["random", "sequential", "blocks"])
@pytest.mark.parametrize("num_samples", [1, 700, 8192 + 8191, 20_000])
def test_pieces_are_the_order(order, num_samples, monkeypatch):
    """Wherever they start, and whatever their size; the random order is the stable argsort of all keys."""
    whole = epoch_order(num_samples, 7, 3, order)
    monkeypatch.setattr(planner_module, "PIECE", 300)
    for start in (0, 1, num_samples // 2, num_samples - 1, num_samples):
        pieces = list(order_pieces(num_samples, 7, 3, order, start))
        assert np.concatenate([whole[:0], *pieces]).tolist() == whole[start:].tolist()
    assert order == "blocks" or len(list(order_pieces(num_samples, 7, 3, order))) == -(-num_samples // 300)
    if order == "random":
        keys = planner_module._keys(0, num_samples, 7, 3, planner_module._SAMPLE_STREAM)
        assert whole.tolist() == np.argsort(keys, kind="stable").tolist()


def test_random_order_is_uniform():
    """First place over 3000 epochs of 10 samples: each about 300 times (bounds at five sigma)."""
    first = np.bincount([epoch_order(10, 5, epoch)[0] for epoch in range(3000)], minlength=10)
    assert first.min() > 215 and first.max() < 385


def test_blocks_mix_classes():
    """In a file sorted by class a batch of "blocks" must still look mixed.

    100 classes of 640: a window of 8192 samples from 128 random blocks holds about 72 classes, so two
    neighbours are of one class with probability about 1/72; a random order gives 1/100.
    """
    labels = np.arange(64000) // 640
    shuffled = labels[epoch_order(64000, 0, 0, "blocks")]
    assert (shuffled[1:] == shuffled[:-1]).mean() < 0.025
    batch_classes = [len(np.unique(batch)) for batch in shuffled.reshape(-1, 256)]
    assert min(batch_classes) > 45


def test_blocks_read_in_runs():
    """Within a window only 128 blocks are touched, so a file on disk is read in runs of 64 samples."""
    window = epoch_order(64000, 0, 0, "blocks")[:8192]
    assert len(np.unique(window // 64)) == 128


def test_unknown_order():
    with pytest.raises(ValueError, match="random, sequential, blocks"):
        epoch_order(3, 0, 0, "shuffled")  # type: ignore[arg-type]


def rows(plans) -> list[list[int]]:
    return [plan.indices.tolist() for plan in plans]


@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_ranks_together_see_the_batches_of_one(world_size, drop_last):
    alone = list(planner(batch_size=2 * world_size, drop_last=drop_last).plans(epoch=1))
    ranks = [
        planner(batch_size=2, world_size=world_size, rank=rank, drop_last=drop_last)
        for rank in range(world_size)
    ]
    parts = [list(rank.plans(epoch=1)) for rank in ranks]
    assert [len(part) for part in parts] == [rank.num_batches() for rank in ranks]
    for step, plan in enumerate(alone):
        shares = [part[step] for part in parts if step < len(part)]
        assert np.concatenate([share.indices for share in shares]).tolist() == plan.indices.tolist()
        np.testing.assert_array_equal(
            np.concatenate([share.params.box for share in shares], 1), plan.params.box
        )


def test_tail():
    assert [len(batch) for batch in rows(planner(20, 8).plans(0))] == [8, 8]
    assert [len(batch) for batch in rows(planner(20, 8, drop_last=False).plans(0))] == [8, 8, 4]
    # 3 samples left for 4 ranks: the last gets none, and knows it
    last = planner(11, 2, world_size=4, rank=3, drop_last=False)
    assert last.num_batches() == 1 == len(rows(last.plans(0)))


def test_resume_in_mid_epoch():
    whole = list(planner().plans(epoch=4))
    rest = list(planner().plans(epoch=4, consumed=5 * 8))
    assert [plan.step for plan in rest] == [plan.step for plan in whole[5:]]
    for ours, theirs in zip(rest, whole[5:], strict=True):
        np.testing.assert_array_equal(ours.indices, theirs.indices)
        np.testing.assert_array_equal(ours.params.jitter_factors, theirs.params.jitter_factors)


def test_subset():
    subset = np.array([3, 10, 50, 51, 99])
    ours = planner(batch_size=2, subset=subset, drop_last=False)
    assert sorted(index for batch in rows(ours.plans(0)) for index in batch) == subset.tolist()
    assert [ours.replacement_for(index) for index in (3, 51, 99)] == [10, 99, 3]
    assert planner(5, 1).replacement_for(4) == 0


GOLDEN_RANDOM = [4, 0, 7, 6, 9, 2, 8, 5, 3, 1]
GOLDEN_BLOCKS = [199, 42, 50, 24, 76, 166, 109, 75, 195, 118]
