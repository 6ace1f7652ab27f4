"""The harness: the counted part of an epoch, by an injected clock, and cases that fail in their processes."""

import os
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from torch.utils.data import DataLoader, Dataset

from benchmarks.core import harness
from benchmarks.core.harness import (
    LAST_BATCHES,
    WARM_BATCHES,
    LoaderRow,
    Round,
    count_middle,
    measure_in_turn,
)
from benchmarks.core.report import from_json, to_json
from pipelines.errors import EngineUnavailable

BATCHES = 100


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def paced(clock: Clock, batches: int = BATCHES) -> Iterator[int]:
    """10 images every 0.02 s; three times as slow at the start and the end of an epoch."""
    for number in range(batches):
        edge = number <= WARM_BATCHES or number >= batches - LAST_BATCHES
        clock.now += 0.02 * (3 if edge else 1)
        yield 10


def test_the_rate_is_that_of_the_middle_of_an_epoch():
    """500 images/s; with the slow edges, which are 13 batches of 100, it would be 400."""
    clock, asked = Clock(), []
    images, seconds, all_images = count_middle(paced(clock), clock, lambda: asked.append(clock.now))
    assert images / seconds == pytest.approx(500)
    assert images == 10 * (BATCHES - 1 - WARM_BATCHES - LAST_BATCHES)
    assert all_images == 10 * BATCHES
    assert asked == [pytest.approx((WARM_BATCHES + 1) * 0.06)]


def test_an_epoch_that_is_too_short_says_so():
    clock = Clock()
    with pytest.raises(ValueError, match="lower the batch size"):
        count_middle(paced(clock, WARM_BATCHES + LAST_BATCHES + 1), clock)
    assert count_middle(paced(clock, WARM_BATCHES + LAST_BATCHES + 2), clock)[0] == 10


@dataclass
class Counting:
    """Gives batches as fast as it can."""

    name: str = "counting"
    lacks: str = "everything"

    def open(self) -> "Counting":
        return self

    def epoch(self, loader: Any) -> Generator[int]:
        for _ in range(BATCHES):
            time.sleep(0.001)
            yield 10


class Unreadable(Dataset):
    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Any:
        raise OSError("image file is truncated")


@dataclass
class Failing(Counting):
    """Fails when it is opened, itself or its worker process, dies in the second round, or lacks its package."""

    how: str = ""

    def open(self) -> "Counting":
        if self.how == "open":
            raise ValueError("no such thing")
        if self.how == "worker":
            next(iter(DataLoader(Unreadable(), num_workers=1)))
        if self.how == "package":
            raise EngineUnavailable("needs thing: pip install thing")
        return self

    def epoch(self, loader: Any) -> Generator[int]:
        if self.how == "die":
            os._exit(3)
        if self.how == "hang":
            time.sleep(1000)
        yield from super().epoch(loader)


@pytest.mark.slow
def test_a_case_that_fails_keeps_the_others():
    names = ("open", "package", "die", "worker")
    cases = [Counting(), *(Failing(name=how, how=how) for how in names)]
    *_, rows = measure_in_turn(cases, rounds=1)
    counting, opening, package, dying, worker = rows
    assert counting.error == "" and counting.rounds == 1 and counting.median > 0
    assert counting.lacks == "everything" and counting.first_batch_s > 0
    assert counting.peak_bytes > 2**20 and counting.cpu_s_per_1000[0] >= 0
    assert opening.error == "ValueError: no such thing"
    assert package.error == "needs thing: pip install thing"
    assert "died" in dying.error
    assert worker.error == "OSError: image file is truncated"
    assert not any(row.images_per_s for row in rows[1:])


def test_a_case_that_hangs_is_given_up(monkeypatch):
    monkeypatch.setattr(harness, "CASE_TIMEOUT_S", 1)
    *_, (hanging,) = measure_in_turn([Failing(name="hangs", how="hang")], rounds=1)
    assert hanging.error == "no answer in 1 seconds"


def test_rounds_add_up():
    row = LoaderRow(name="x")
    for images, peak in ((30, 5), (10, 9), (20, 7)):
        row = harness._with_round(row, Round(images, 2.0, 0.5, peak))
    assert row.images_per_s == [15, 5, 10] and row.cpu_s_per_1000 == [0.5] * 3 and row.peak_bytes == 9
    assert (row.median, row.low, row.high, row.rounds) == (10, 5, 15, 3)
    written = to_json(row)
    assert (written["median"], written["low"], written["high"], written["rounds"]) == (10, 5, 15, 3)
    assert from_json(LoaderRow, written) == row
    nothing = LoaderRow(name="x", error="failed")
    assert (nothing.median, nothing.rounds) == (0, 0)
