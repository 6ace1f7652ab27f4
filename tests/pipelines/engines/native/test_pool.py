"""The worker pool: order, no loss of rows, errors, and that nothing is left behind."""

import sys
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from pipelines.contracts import BatchPlan
from pipelines.engines.native.pool import Job, WorkerPool
from pipelines.planner import BatchPlanner
from pipelines.views import ViewSpec

SAMPLER = BatchPlanner(
    np.full(50, 40), np.full(50, 40), (ViewSpec.crop_flip(4),), batch_size=7, drop_last=False
)


def allocate(plan: BatchPlan) -> np.ndarray:
    return np.full(len(plan.indices), -1)


def write_index(job: Job, low: int, high: int, scratch: object) -> None:
    assert (job.pixels[low:high] == -1).all()  # no other thread had these rows
    job.pixels[low:high] = job.plan.indices[low:high]


def make_pool(work=write_index, plans: Iterator[BatchPlan] | None = None, **changes) -> WorkerPool:
    return WorkerPool(plans or SAMPLER.plans(0), allocate, work, object, **{"num_threads": 4, **changes})


def workers() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("fastclr-worker")]


@pytest.mark.parametrize("rows_per_claim", [1, 3, 100])
@pytest.mark.parametrize("num_threads", [1, 4, 16])  # 16: more threads than rows of a batch
def test_batches_come_whole_and_in_order(num_threads, rows_per_claim):
    def jitter(job: Job, low: int, high: int, scratch: object) -> None:
        time.sleep(0.002 * (low % 3))  # rows finish out of order
        write_index(job, low, high, scratch)

    pool = make_pool(jitter, num_threads=num_threads, rows_per_claim=rows_per_claim)
    seen = [(plan.step, pixels.tolist()) for plan, pixels in pool.batches()]
    assert seen == [(plan.step, plan.indices.tolist()) for plan in SAMPLER.plans(0)]
    assert workers() == []


def test_a_closed_iterator_stops_its_threads():
    before = threading.active_count()
    for _ in range(20):
        batches = make_pool().batches()
        next(batches)
        assert len(workers()) > 0
        batches.close()
    assert threading.active_count() == before


def test_a_forgotten_iterator_stops_its_threads():
    batches = make_pool(plans=(plan for epoch in range(10**6) for plan in SAMPLER.plans(epoch))).batches()
    next(batches)
    del batches
    assert workers() == []


def test_memory_is_bounded():
    """While the receiver takes no batch, only prefetch + 1 batches are started, not all eight."""
    begun = []

    def counting(plan: BatchPlan) -> np.ndarray:
        begun.append(plan.step)
        return allocate(plan)

    pool = WorkerPool(SAMPLER.plans(0), counting, write_index, object, num_threads=4, prefetch=2)
    batches = pool.batches()
    next(batches)
    time.sleep(0.2)
    assert begun == [0, 1, 2, 3]  # the one received, and prefetch + 1
    batches.close()


def test_an_error_in_the_work_reaches_the_receiver():
    def failing(job: Job, low: int, high: int, scratch: object) -> None:
        if job.plan.step == 3:
            raise ValueError("sample 25: no good")
        write_index(job, low, high, scratch)

    with pytest.raises(ValueError, match="sample 25"):
        list(make_pool(failing).batches())
    assert workers() == []


def test_an_error_in_the_plans_reaches_the_receiver():
    def plans() -> Iterator[BatchPlan]:
        yield next(SAMPLER.plans(0))
        raise ValueError("no more plans")

    with pytest.raises(ValueError, match="no more plans"):
        list(make_pool(plans=plans()).batches())
    assert workers() == []


def test_no_thread_takes_the_plans_after_their_error_for_their_end():
    """A generator that has raised is exhausted: another thread would take that for the end of the epoch."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    plan = next(SAMPLER.plans(0))
    try:
        for number in range(3000):

            def plans(given: int = number % 4) -> Iterator[BatchPlan]:
                for _ in range(given):
                    yield plan
                raise ValueError("no more plans")

            pool = WorkerPool(plans(), allocate, lambda *_: None, object, num_threads=(2, 4, 12)[number % 3])
            with pytest.raises(ValueError, match="no more plans"):
                list(pool.batches())
    finally:
        sys.setswitchinterval(interval)


def test_a_replacement_is_seen_by_the_receiver_and_not_by_the_plan():
    plans = list(SAMPLER.plans(0))
    first = plans[0].indices.tolist()

    def work(job: Job, low: int, high: int, scratch: object) -> None:
        if job.plan.step == 0 and low == 2:
            pool.replace(job, 2, 49, SAMPLER.draw(0, np.array([49])))

    pool = make_pool(work, iter(plans))
    received = next(iter(pool.batches())).plan
    assert received.indices.tolist() == [*first[:2], 49, *first[3:]]
    np.testing.assert_array_equal(received.params.box[:, 2], SAMPLER.draw(0, np.array([49])).box[:, 0])
    assert plans[0].indices.tolist() == first
