import time

import pytest
import torch

from fastclr.train.meter import Meter, NotFinite


def test_waiting_counts_the_time_in_next_and_nothing_else():
    def slow():
        for number in range(4):
            time.sleep(0.05)
            yield number

    meter, seen = Meter(), []
    for number in meter.waiting(slow()):
        seen.append(number)
        time.sleep(0.15)
        meter.add(torch.tensor(float(number)), 8)
    numbers = meter.read(step=4)
    assert seen == [0, 1, 2, 3]
    assert numbers["loss"] == 1.5
    # four times 0.05 s of 0.2 s; sleeps are never shorter, and on a busy machine longer
    assert 0.1 < numbers["data_wait"] < 0.5
    assert 8 / 0.5 < numbers["images_per_s"] <= 8 / 0.2


def test_read_starts_anew_and_overall_does_not():
    meter = Meter()
    meter.add(torch.tensor(1.0), 10)
    assert meter.read(1)["loss"] == 1.0
    assert meter.read(1) == {}
    meter.add(torch.tensor(3.0), 10)
    before = time.perf_counter()
    overall = meter.overall()["images_per_s"]
    assert meter.read(2)["loss"] == 3.0
    # 20 images since the start against 10 since the last read, in less time
    assert overall > 0
    assert time.perf_counter() - before < 1


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_the_first_bad_step_is_named_however_late_it_is_found(bad):
    meter = Meter()
    for loss in (1.0, 1.0, bad, float("nan"), 1.0):
        meter.add(torch.tensor(loss), 1)
    with pytest.raises(NotFinite, match=f"step 13: the loss became {bad}") as caught:
        meter.read(step=15)  # the five steps are 11 to 15
    assert caught.value.step == 13


def test_leaving_the_loop_closes_the_batches():
    closed = []

    def batches():
        try:
            yield from range(10)
        finally:
            closed.append(True)

    waiting = Meter().waiting(batches())
    next(waiting)
    waiting.close()
    assert closed == [True]
