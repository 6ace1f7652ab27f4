"""Threads that turn plans into pixels, batch by batch and in order.

    plans ──one thread at a time──▶ jobs (plan + empty pixels) ──all threads, row by row──▶ batches in order

Threads claim rows across batch borders, so no thread idles while others finish a batch.  The work itself (decode, crop,
augment) releases the GIL, which is held for only a few microseconds per claim.
"""

import atexit
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipelines.contracts import BatchPlan, Crops, Views
from pipelines.views import ViewParams


@dataclass(eq=False)
class Job:
    """A batch that is being made."""

    plan: BatchPlan
    pixels: tuple[np.ndarray, ...]
    """One array per group of views, [V_g, B, H_g, W_g, 3]."""
    claimed: int = 0
    """Rows handed out."""
    finished: int = 0
    """Rows done."""
    owns_plan: bool = False
    _tables: tuple[BatchPlan, Any] | None = None

    @property
    def rows(self) -> int:
        return len(self.plan.indices)

    def per_group(self, split: Callable[[ViewParams], Any]) -> Any:
        """Return `split(params)`, computed once per job: slicing tables takes as long as a small image."""
        plan, tables = self.plan, self._tables
        # a plan with replaced rows is a new object; slices of its arrays show later replacements as well
        if tables is None or tables[0] is not plan:
            tables = self._tables = plan, split(plan.params)
        return tables[1]


class WorkerPool:
    """Runs `work` over the rows of every plan.  One pool serves one pass over the plans.

    Args:
        plans: the workers draw them ahead of need, one worker at a time.
        allocate: makes the uninitialised pixels of a plan, one array per group.
        work: fills rows [low, high) of a job; called from many threads at once.
        make_scratch: makes the working memory of a thread.
        num_threads: number of worker threads.
        prefetch: maximum number of finished batches that wait for the receiver; at most `prefetch` + 2 batches are in
            memory, the receiver's included.
        rows_per_claim: number of rows that a thread takes at a time.
        result: type of the finished pixels, Crops or Views.
    """

    def __init__(
        self,
        plans: Iterator[BatchPlan],
        allocate: Callable[[BatchPlan], tuple[np.ndarray, ...]],
        work: Callable[[Job, int, int, Any], None],
        make_scratch: Callable[[], Any],
        num_threads: int,
        prefetch: int = 2,
        rows_per_claim: int = 1,
        result: type[Crops] | type[Views] = Crops,
    ) -> None:
        self._plans, self._allocate, self._work, self._make_scratch = plans, allocate, work, make_scratch
        self._limit, self._rows_per_claim, self._result = prefetch + 1, rows_per_claim, result
        self._lock = threading.Lock()
        self._work_ready = threading.Condition(self._lock)
        self._batch_ready = threading.Condition(self._lock)
        self._jobs: deque[Job] = deque()  # not yet handed to the receiver, in order
        self._open: deque[Job] = deque()  # of these, the ones with rows to claim
        self._planning = self._exhausted = self._stopped = False
        self._error: BaseException | None = None
        self._threads = [
            threading.Thread(target=self._run, name=f"fastclr-worker-{number}", daemon=True)
            for number in range(num_threads)
        ]

    def batches(self) -> Generator[Crops | Views]:
        """Yield the finished batches, in the order of the plans.  Closing the iterator stops the threads.

        Raises:
            Exception: what `plans` or `work` raised; unfinished batches are dropped.
        """
        if self._stopped:
            raise RuntimeError("the loader was closed")
        try:
            _alive.add(self)
            for thread in self._threads:
                thread.start()
            # yielded without a variable, which would keep each batch alive until the next one is requested
            finished: Iterator[Crops | Views] = iter(self._next, None)
            yield from finished
        finally:
            self.stop()

    def replace(self, job: Job, row: int, index: int, params: ViewParams) -> None:
        """Put sample `index`, with its own numbers, at `row` of a job."""
        with self._lock:
            if not job.owns_plan:
                job.plan, job.owns_plan = job.plan.copy(), True
            job.plan.replace_row(row, index, params)

    def _next(self) -> Crops | Views | None:
        with self._lock:
            while True:
                if self._jobs and self._jobs[0].finished == self._jobs[0].rows:
                    self._work_ready.notify_all()
                    job = self._jobs.popleft()
                    return self._result(job.plan, job.pixels)
                if self._error is not None:
                    raise self._error
                if self._exhausted and not self._jobs:
                    return None
                if self._stopped:
                    raise RuntimeError("the loader was closed")
                self._batch_ready.wait()

    def stop(self) -> None:
        """End the threads and wait for them; batches that were not received are dropped."""
        with self._lock:
            self._stopped = True
            self._work_ready.notify_all()
            self._batch_ready.notify_all()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()
        self._jobs.clear()
        self._open.clear()
        _alive.discard(self)

    def _run(self) -> None:
        try:
            scratch = self._make_scratch()
            while (claim := self._claim()) is not None:
                job, low, high = claim
                self._work(job, low, high, scratch)
                with self._lock:
                    job.finished += high - low
                    if job.finished == job.rows:
                        self._batch_ready.notify_all()
        except BaseException as error:
            with self._lock:
                self._fail(error)

    def _fail(self, error: BaseException) -> None:
        """Keep the first error for the receiver, and let the threads end.  Call it with the lock held."""
        self._error = self._error or error
        self._stopped = True
        self._work_ready.notify_all()
        self._batch_ready.notify_all()

    def _claim(self) -> tuple[Job, int, int] | None:
        """Return the next rows to work on; None when there are no more."""
        with self._lock:
            while not self._stopped:
                # one job in reserve, so that no thread waits until a plan is drawn
                room = len(self._jobs) < self._limit and not self._exhausted
                if room and len(self._open) < 2 and not self._planning:
                    self._plan()
                elif self._open:
                    job = self._open[0]
                    low, high = job.claimed, min(job.claimed + self._rows_per_claim, job.rows)
                    job.claimed = high
                    if high == job.rows:
                        self._open.popleft()
                    return job, low, high
                elif self._exhausted:
                    return None
                else:
                    self._work_ready.wait()
            return None

    def _plan(self) -> None:
        """Draw the next plan; the lock is released meanwhile."""
        self._planning = True
        self._lock.release()
        job = failed = None
        try:
            plan = next(self._plans, None)
            job = Job(plan, self._allocate(plan)) if plan is not None else None
        except BaseException as error:
            failed = error
        finally:
            self._lock.acquire()
            self._planning = False
        # before another thread draws from the generator of plans, which an error has ended
        if failed is not None:
            self._fail(failed)
        elif job is None:
            self._exhausted = True
            self._batch_ready.notify_all()
        else:
            self._jobs.append(job)
            self._open.append(job)
        self._work_ready.notify_all()


_alive: weakref.WeakSet[WorkerPool] = weakref.WeakSet()


@atexit.register
def _stop_all() -> None:
    """Stop all pools at exit: threads that write into memory while Python shuts down would crash it."""
    for pool in list(_alive):
        pool.stop()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_alive.clear)  # a child has no threads to stop
