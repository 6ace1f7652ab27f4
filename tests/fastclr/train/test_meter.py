import pytest
import torch

from fastclr.train.meter import Meter, NotFinite


class Clock:
    """A clock that advances only when the test tells it to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_timed_counts_the_time_in_next_and_nothing_else():
    clock = Clock()

    def slow():
        for number in range(4):
            clock.now += 1
            yield number

    meter, seen = Meter(clock=clock), []
    for number in meter.timed(slow()):
        seen.append(number)
        clock.now += 3
        meter.add(torch.tensor(float(number)), 8)
    assert seen == [0, 1, 2, 3]
    assert meter.flush(step=4) == {"loss": 1.5, "images_per_s": 2.0, "data_wait": 0.25}


def test_flush_starts_anew_and_totals_do_not():
    clock = Clock()
    meter = Meter(clock=clock)
    meter.add(torch.tensor(1.0), 10)
    clock.now += 1
    assert meter.flush(1)["images_per_s"] == 10
    assert meter.flush(1) == {}
    meter.add(torch.tensor(3.0), 30)
    clock.now += 1
    assert meter.flush(2) == {"loss": 3.0, "images_per_s": 30.0, "data_wait": 0.0}
    assert meter.totals() == {"images_per_s": 20.0, "data_wait": 0.0}


def test_a_pause_does_not_count():
    clock = Clock()
    meter = Meter(clock=clock)
    meter.add(torch.tensor(1.0), 10)
    clock.now += 1
    with meter.paused():
        clock.now += 1000
    clock.now += 1
    assert meter.flush(1)["images_per_s"] == 5
    assert meter.totals()["images_per_s"] == 5


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_the_first_bad_step_is_named_however_late_it_is_found(bad):
    meter = Meter()
    for loss in (1.0, 1.0, bad, float("nan"), 1.0):
        meter.add(torch.tensor(loss), 1)
    with pytest.raises(NotFinite, match=f"step 13: the loss became {bad}") as caught:
        meter.flush(step=15)  # the five steps are 11 to 15
    assert caught.value.step == 13


def test_leaving_the_loop_closes_the_batches():
    closed = []

    def batches():
        try:
            yield from range(10)
        finally:
            closed.append(True)

    timed = Meter().timed(batches())
    next(timed)
    timed.close()
    assert closed == [True]
