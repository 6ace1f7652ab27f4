"""Batch memory that is used again as soon as nobody looks at it.

A batch belongs to its receiver, so every batch needs memory of its own; but writing to memory fresh from the
operating system costs twice as much as writing to memory used before, more than the crops it receives.
"""

import sys
import threading

import numpy as np

ALIGNMENT = 64
"""Bytes: a cache line, and the widest vector."""


class RecycledMemory:
    """Hands out memory, and hands it out again when every array and tensor made of it is gone.

    Arrays, their slices and the tensors that share them all hold a reference to the array that owns the
    memory, so its reference count tells whether somebody still looks at it.

    Args:
        most: blocks to keep.
    """

    def __init__(self, most: int) -> None:
        self._most, self._blocks = most, list[np.ndarray]()
        self._lock = threading.Lock()

    def take(self, shape: tuple[int, ...], dtype: type) -> np.ndarray:
        """An uninitialised array, aligned to 64 bytes."""
        num_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        with self._lock:
            block = self._unused(num_bytes)
            start = -block.ctypes.data % ALIGNMENT
            return block[start : start + num_bytes].view(dtype).reshape(shape)

    def _unused(self, num_bytes: int) -> np.ndarray:
        self._blocks = [block for block in self._blocks if block.size == num_bytes + ALIGNMENT]
        for number in range(len(self._blocks)):
            if sys.getrefcount(self._blocks[number]) == 2:  # the list's and the call's own
                return self._blocks[number]
        block = np.empty(num_bytes + ALIGNMENT, np.uint8)
        if len(self._blocks) < self._most:
            self._blocks.append(block)
        return block

    def clear(self) -> None:
        """Keep nothing."""
        self._blocks = []
