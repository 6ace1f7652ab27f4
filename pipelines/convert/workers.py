"""Worker threads that encode.  The process ends without waiting for one in which a decoder is stuck for minutes."""

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

STOP_TIMEOUT_S = 0.5
"""Time to wait for the threads when the generator is closed early."""


def map_in_order(
    function: Callable[[Item], Result], chunks: Iterable[list[Item]], workers: int
) -> Generator[Result]:
    """Yield `function(item)` for every item, in order, computed by threads; at most 2·workers + 1 chunks are in flight.

    When the generator is closed, threads stop after their current item.  They are daemon threads, so a thread that is
    stuck does not keep the process from ending.

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
        deadline = time.monotonic() + STOP_TIMEOUT_S
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
