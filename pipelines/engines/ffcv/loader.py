"""The stock FFCV loader, driven so that it leaves no thread behind.

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
    """Iterate a stock FFCV loader over one epoch.  When it ends or is closed, so do FFCV's threads.

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
    """Begin an epoch; if Ctrl-C ends that half way, the thread that it may have started ends, too."""
    before = set(threading.enumerate())
    try:
        return iter(loader)
    except BaseException:
        for thread in set(threading.enumerate()) - before:
            if isinstance(thread, EpochIterator):
                _stop(thread)
        raise


def _wait(iterator: EpochIterator) -> bool:
    """Wait for the next batch; whether there is one.  (FFCV itself waits for ever when its thread has died.)"""
    queue = iterator.output_queue
    with queue.not_empty:
        while not queue.queue:
            if not iterator.is_alive():
                raise RuntimeError("FFCV's thread died; its own message is on the error stream")
            queue.not_empty.wait(0.5)
        return queue.queue[0] is not None


def _stop(iterator: EpochIterator) -> None:
    """End FFCV's thread after the batch that it is working on; `close()` alone leaves it waiting."""
    iterator.iter_ixes = iter(())
    iterator.close()
    while iterator.is_alive():
        while not iterator.output_queue.empty():  # or it waits for room in the queue
            iterator.output_queue.get_nowait()
        iterator.join(0.01)
