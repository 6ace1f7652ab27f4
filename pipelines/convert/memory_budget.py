"""Bounds the memory that decoded images take, whatever the number of threads that decode."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

SMALL = 1 << 24
"""Images of up to this many bytes are not counted: 16 MB per thread."""


class MemoryBudget:
    """A number of bytes that threads share; a thread that would exceed the limit waits.

    A request larger than the whole limit is granted as soon as no other thread holds any memory.

    >>> budget = MemoryBudget(1 << 30)
    >>> with budget.hold(1 << 29):
    ...     budget.held
    536870912
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.held = limit, 0
        self._changed = threading.Condition()

    @contextmanager
    def hold(self, num_bytes: int) -> Iterator[None]:
        """Hold `num_bytes` while the block runs, which starts when so many are free."""
        if num_bytes <= SMALL:
            yield
            return
        with self._changed:
            self._changed.wait_for(lambda: not self.held or self.held + num_bytes <= self.limit)
            self.held += num_bytes
        try:
            yield
        finally:
            with self._changed:
                self.held -= num_bytes
                self._changed.notify_all()
