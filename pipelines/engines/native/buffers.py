"""BufferPool: memory for batches that is reused as soon as nothing refers to it.

A batch belongs to its receiver, so every batch needs its own memory.  But writing to memory fresh from the operating
system takes twice as long as writing to memory used before, and longer than computing the crops that are written.
"""

import sys
import threading

import numpy as np

ALIGNMENT = 64
"""Alignment in bytes: a cache line, and the widest vector."""


class BufferPool:
    """Hands out memory, and reuses it when all arrays and tensors made from it are gone.

    Arrays, their slices and the tensors that share them all hold a reference to the array that owns the
    memory, so its reference count tells whether anything still uses it.

    Args:
        max_buffers: maximum number of buffers to keep.
    """

    def __init__(self, max_buffers: int) -> None:
        self._max_buffers, self._buffers = max_buffers, list[np.ndarray]()
        self._lock = threading.Lock()

    def acquire(self, shape: tuple[int, ...], dtype: type) -> np.ndarray:
        """Return an uninitialised array, aligned to 64 bytes."""
        num_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        with self._lock:
            buffer = self._unused(num_bytes)
            start = -buffer.ctypes.data % ALIGNMENT
            return buffer[start : start + num_bytes].view(dtype).reshape(shape)

    def _unused(self, num_bytes: int) -> np.ndarray:
        self._buffers = [buffer for buffer in self._buffers if buffer.size == num_bytes + ALIGNMENT]
        for number in range(len(self._buffers)):
            # the references of the list and of the call itself
            if sys.getrefcount(self._buffers[number]) == 2:
                return self._buffers[number]
        buffer = np.empty(num_bytes + ALIGNMENT, np.uint8)
        if len(self._buffers) < self._max_buffers:
            self._buffers.append(buffer)
        return buffer

    def clear(self) -> None:
        """Keep no buffer."""
        self._buffers = []
