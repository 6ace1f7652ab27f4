"""A bound on the memory that decoded images take, whatever the number of threads that decode."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

SMALL = 1 << 24
"""Bytes of an image that is not counted: 16 MB per thread."""


class MemoryBudget:
    """Bytes that threads hold while they work; who would exceed the limit waits.

    Work that alone exceeds the limit starts when nobody else holds anything: it is not refused.

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
        """Hold `num_bytes` while the block runs; the block starts when there is room for them."""
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
