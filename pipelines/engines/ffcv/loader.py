"""Drives the stock FFCV loader so that it leaves no thread behind.

This file needs the package `ffcv`.
"""

import threading
from collections.abc import Generator
from typing import Any

from ffcv.loader import Loader
from ffcv.loader.epoch_iterator import EpochIterator

from pipelines.engines.ffcv.patches import patch_reader

patch_reader()


def drive(loader: Loader) -> Generator[Any]:
    """Iterate a stock FFCV loader over one epoch.  FFCV's threads end with the iterator.

    Raises:
        RuntimeError: FFCV's thread died.
    """
    iterator = _start(loader)
    try:
        while _wait(iterator):
            yield next(iterator)
    finally:
        _stop(iterator)


def _start(loader: Loader) -> EpochIterator:
    """Begin an epoch.  If Ctrl-C interrupts this, end the thread that FFCV may have started already."""
    before = set(threading.enumerate())
    try:
        return iter(loader)
    except BaseException:
        for thread in set(threading.enumerate()) - before:
            if isinstance(thread, EpochIterator):
                _stop(thread)
        raise


def _wait(iterator: EpochIterator) -> bool:
    """Wait for the next batch and return whether there is one; FFCV itself would wait for ever for a dead thread."""
    queue = iterator.output_queue
    with queue.not_empty:
        while not queue.queue:
            if not iterator.is_alive():
                raise RuntimeError("FFCV's thread died; its own message is on the error stream")
            queue.not_empty.wait(0.5)
        return queue.queue[0] is not None


def _stop(iterator: EpochIterator) -> None:
    """End FFCV's thread after its current batch; `close()` alone would leave it waiting."""
    iterator.iter_ixes = iter(())
    iterator.close()
    while iterator.is_alive():
        while not iterator.output_queue.empty():  # a thread that waits for room in the queue would never end
            iterator.output_queue.get_nowait()
        iterator.join(0.01)
