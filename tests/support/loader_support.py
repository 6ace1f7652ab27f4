"""Loaders of small batches for tests, and what is in them, to compare."""

from pathlib import Path

import torch

from pipelines import TwoViewLoader

HOST_ENGINES = ["native", "resident"]


def loader(file: Path, **changes) -> TwoViewLoader:
    return TwoViewLoader(file, **{"batch_size": 6, "size": 32, "seed": 3, "num_threads": 2, **changes})


def contents(batches) -> list[tuple]:
    return [
        (batch.epoch, batch.step, batch.indices.tolist(), batch.labels.tolist(), batch.views)
        for batch in batches
    ]


def assert_same(ours: list[tuple], theirs: list[tuple]) -> None:
    assert [batch[:4] for batch in ours] == [batch[:4] for batch in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one[4], other[4])
