"""The harness on cases whose rate is known, and on cases that fail."""

import os
import time
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import pytest
from torch.utils.data import DataLoader, Dataset

from benchmarks.core import harness
from benchmarks.core.harness import LAST_BATCHES, WARM_BATCHES, Result, measure
from pipelines.errors import EngineUnavailable


@dataclass
class Paced:
    """An image every `seconds_per_image`, by the clock; slower at the start and the end of an epoch."""

    name: str = "paced"
    lacks: str = ""
    seconds_per_image: float = 0.002
    batches: int = 100

    def open(self) -> "Paced":
        return self

    def epoch(self, loader: Any) -> Generator[int]:
        due = time.perf_counter()
        for number in range(self.batches):
            edge = number <= WARM_BATCHES or number >= self.batches - LAST_BATCHES
            due += 10 * self.seconds_per_image * (3 if edge else 1)
            time.sleep(max(0.0, due - time.perf_counter()))
            yield 10


class Unreadable(Dataset):
    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Any:
        raise OSError("image file is truncated")


@dataclass
class Failing(Paced):
    """Fails when it is opened, itself or its worker process, dies in the second round, or lacks its package."""

    how: str = ""

    def open(self) -> "Paced":
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


def test_the_rate_is_that_of_the_middle_of_an_epoch():
    """500 images/s; with the slow edges, which are 13 batches of 100, it would be 400."""
    *_, (result,) = measure([Paced()], rounds=2)
    assert result.error == ""
    assert len(result.images_per_s) == 2
    assert result.median == pytest.approx(500, rel=0.08)
    assert 0 < result.first_batch_s < 1
    assert result.peak_bytes > 2**20
    assert all(value >= 0 for value in result.cpu_s_per_1000)


@pytest.mark.slow
def test_a_case_that_fails_keeps_the_others():
    names = ("open", "package", "die", "worker")
    cases = [Paced(), *(Failing(name=how, how=how) for how in names)]
    *_, results = measure(cases, rounds=1)
    paced, opening, package, dying, worker = results
    assert paced.error == "" and len(paced.images_per_s) == 1
    assert opening.error == "ValueError: no such thing"
    assert package.error == "needs thing: pip install thing"
    assert "died" in dying.error
    assert worker.error == "OSError: image file is truncated"
    assert not any(result.images_per_s for result in results[1:])


def test_a_case_that_hangs_is_given_up(monkeypatch):
    monkeypatch.setattr(harness, "PATIENCE_S", 8)
    *_, (hanging,) = measure([Failing(name="hangs", how="hang")], rounds=1)
    assert hanging.error == "no answer in 8 seconds"


def test_an_epoch_that_is_too_short_says_so():
    *_, (result,) = measure([Paced(batches=WARM_BATCHES + LAST_BATCHES)], rounds=1)
    assert "lower the batch size" in result.error


def test_median_and_spread_of_a_result():
    found = Result("x", images_per_s=[30.0, 10.0, 20.0]).as_json()
    assert (found["median"], found["low"], found["high"], found["rounds"]) == (20, 10, 30, 3)
    nothing = Result("x", error="failed").as_json()
    assert (nothing["median"], nothing["rounds"]) == (0, 0)
    assert "low" not in nothing
