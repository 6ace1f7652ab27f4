"""Threads that encode, and that nobody waits for at the end: a decoder may be stuck in one for minutes."""

import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future
from itertools import islice
from queue import SimpleQueue
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

PATIENCE_S = 0.5
"""Seconds that the threads are waited for when the work is given up."""


def map_in_order(
    function: Callable[[Item], Result], chunks: Iterable[list[Item]], workers: int
) -> Generator[Result]:
    """Yield `function` of every item, in order, computed by threads; 2·workers + 1 chunks are underway at a time.

    When the generator is closed, threads stop after the item that they are at.  They are daemons, so one that does
    not come back does not keep the process from ending.

    Args:
        function: must not raise.
    """
    tasks: SimpleQueue[tuple[list[Item], Future] | None] = SimpleQueue()
    stopped = threading.Event()
    threads = [
        threading.Thread(target=_work, args=(function, tasks, stopped), name=f"convert-{k}", daemon=True)
        for k in range(workers)
    ]
    waiting: Iterator[list[Item]] = iter(chunks)
    pending: deque[Future] = deque()

    def submit(count: int) -> None:
        for chunk in islice(waiting, count):
            pending.append(Future())
            tasks.put((chunk, pending[-1]))

    try:
        for thread in threads:
            thread.start()
        submit(2 * workers)
        while pending:
            yield from pending.popleft().result()
            submit(1)
    finally:
        stopped.set()
        for _ in threads:
            tasks.put(None)
        deadline = time.monotonic() + PATIENCE_S
        for thread in threads:
            if thread.ident is not None:
                thread.join(max(0.0, deadline - time.monotonic()))


def _work(function: Callable, tasks: SimpleQueue, stopped: threading.Event) -> None:
    while (task := tasks.get()) is not None:
        chunk, future = task
        results = []
        for item in chunk:
            if stopped.is_set():
                return
            try:
                results.append(function(item))
            except BaseException as error:
                future.set_exception(error)
                return
        future.set_result(results)
