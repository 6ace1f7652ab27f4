"""Map several files into memory, one after the other, as one array of bytes.

    a.beton       b.beton        c.beton         the files
    │             │              │
    ▼             ▼              ▼
    [a a a a a ··][b b b b b b ·][c c c ····]    one range of addresses; a file begins at a multiple of the page size

Compiled code can therefore read several files as one, and nothing is copied.  An anonymous mapping first reserves the
whole range; then each file is mapped over its part of the range.  The range is released as a whole, together with the
last array that views it.
"""

import ctypes
import mmap
import os
import weakref
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import numpy as np

MAX_DESCRIPTORS = 256
"""Maximum number of files in a set that stay open for readahead; many systems limit a process to 1024 open files."""
_MAP_FIXED = 0x10
"""MAP_FIXED on Linux, macOS and the BSDs; Python's mmap module does not define it."""


class FileMap:
    """Regular files that are mapped for reading.

    Args:
        paths: at least one file.
        min_bytes: minimum size of a file.

    Raises:
        OSError: a file can't be opened or mapped.
        ValueError: a file has fewer than `min_bytes` bytes.
    """

    data: np.ndarray
    """uint8: all files; read-only."""
    starts: np.ndarray
    """int64 [F]: first byte of each file in `data`."""
    sizes: np.ndarray
    """int64 [F]: size of each file in bytes."""

    def __init__(self, paths: Sequence[Path], min_bytes: int) -> None:
        with ExitStack() as opened:
            streams = []
            for path in paths:
                # a set may have more files than a process may keep open: files of such a set are opened later
                stream = opened.enter_context(open(path, "rb")) if len(paths) <= MAX_DESCRIPTORS else None
                size = os.fstat(stream.fileno()).st_size if stream else path.stat().st_size
                if size < min_bytes:
                    raise ValueError(f"{path}: no .beton file: {size} bytes are fewer than a header has")
                streams.append((stream, size))
            self.sizes = np.array([size for _, size in streams])
            self.data, self.starts, self._map = _map_all(paths, [s for s, _ in streams], self.sizes)
            self.descriptors = [os.dup(stream.fileno()) for stream, _ in streams if stream]
            """Descriptors of the files; empty for more than `MAX_DESCRIPTORS` files."""
        self._finalizer = weakref.finalize(self, _close_all, self.descriptors)

    def file(self, number: int) -> np.ndarray:
        """Return the bytes of a file: a view of `data`."""
        start = self.starts[number]
        return self.data[start : start + self.sizes[number]]

    def will_need(self, offsets: np.ndarray, sizes: np.ndarray) -> None:
        """Ask the system to read these parts of `data` ahead from the disk, without waiting for them.

        Args:
            offsets, sizes: int64 [B]; each part lies within one file.
        """
        if self.descriptors and hasattr(os, "posix_fadvise"):
            if len(self.descriptors) == 1:
                files, within = [0] * len(offsets), offsets.tolist()
            else:
                number = np.searchsorted(self.starts, offsets, "right") - 1
                files, within = number.tolist(), (offsets - self.starts[number]).tolist()
            descriptors = self.descriptors
            for file, offset, size in zip(files, within, sizes.tolist(), strict=True):
                os.posix_fadvise(descriptors[file], offset, size, os.POSIX_FADV_WILLNEED)
        # a call of madvise takes twice as long
        elif hasattr(self._map, "madvise"):
            first = offsets & -mmap.PAGESIZE
            for start, size in zip(first.tolist(), (offsets - first + sizes).tolist(), strict=True):
                self._map.madvise(mmap.MADV_WILLNEED, start, size)

    def close(self) -> None:
        """Close the files; arrays that view `data` stay valid."""
        self._finalizer()
        del self.data, self._map


def _map_all(
    paths: Sequence[Path], streams: list[BinaryIO | None], sizes: np.ndarray
) -> tuple[np.ndarray, np.ndarray, mmap.mmap]:
    if len(paths) == 1:
        assert streams[0] is not None
        try:
            whole = mmap.mmap(streams[0].fileno(), int(sizes[0]), access=mmap.ACCESS_READ)
        except OSError as error:
            raise _cannot_map(paths[0], error.errno or 0) from None
        return np.frombuffer(whole, np.uint8), np.zeros(1, np.int64), whole
    if not hasattr(mmap, "MAP_ANONYMOUS"):
        raise OSError(
            f"{paths[0]}: sets of several files can't be mapped on this system; convert to one file"
        )
    room = -(-sizes // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY
    ends = np.cumsum(room)
    starts = ends - room
    # a read-only mapping that is never touched takes no memory
    reserved = mmap.mmap(-1, int(ends[-1]), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=mmap.PROT_READ)
    data = np.frombuffer(reserved, np.uint8)
    library = ctypes.CDLL(None, use_errno=True)
    library.mmap.restype = ctypes.c_void_p
    library.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    for path, kept, start, size in zip(paths, streams, starts.tolist(), sizes.tolist(), strict=True):
        with ExitStack() as stack:
            stream = kept or stack.enter_context(open(path, "rb"))
            # since its size was read, the file may have been replaced by one with fewer bytes than are mapped
            if os.fstat(stream.fileno()).st_size < size:
                raise ValueError(f"{path}: the file changed while it was opened; try again")
            wanted = data.ctypes.data + start
            flags = mmap.MAP_SHARED | _MAP_FIXED
            if library.mmap(wanted, size, mmap.PROT_READ, flags, stream.fileno(), 0) != wanted:
                raise _cannot_map(path, ctypes.get_errno())
    return data, starts, reserved


def _cannot_map(path: Path, number: int) -> OSError:
    reason = os.strerror(number)
    return OSError(
        number, f"the file cannot be mapped into memory ({reason}); copy it to a local disk", str(path)
    )


def _close_all(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
