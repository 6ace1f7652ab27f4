"""Keeps a million names in little memory: one block of bytes instead of a string each."""

import itertools
from array import array
from collections.abc import Iterable, Sequence
from typing import overload

import numpy as np


class NameList(Sequence[str]):
    """A list of names that only grows; a name takes its UTF-8 bytes and 8 more.

    >>> names = NameList(["a/1.jpg"]); names.append("b/2.jpg"); names[1], len(names)
    ('b/2.jpg', 2)
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._bytes = bytearray()
        self._ends = array("q", [0])
        for name in names:
            self.append(name)

    def append(self, name: str) -> None:
        self._bytes += name.encode("utf-8", "surrogateescape")
        self._ends.append(len(self._bytes))

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> "NameList": ...
    def __getitem__(self, index: int | slice) -> "str | NameList":
        if isinstance(index, slice):
            return NameList(self[k] for k in range(*index.indices(len(self))))
        if not 0 <= index < len(self):
            raise IndexError(f"name {index} of {len(self)}")
        return self._bytes[self._ends[index] : self._ends[index + 1]].decode("utf-8", "surrogateescape")

    def selected(self, keep: np.ndarray) -> "NameList":
        """Return the names at which `keep`, bool [N], is true."""
        return NameList(self[index] for index in np.flatnonzero(keep).tolist())

    def num_repeated(self, groups: np.ndarray) -> int:
        """Return how many names occur not for the first time in their group; 16 bytes of memory per name.

        Args:
            groups: int [N], the group of each name.
        """
        # neither a copy of the bytes nor a list: they would be the largest part of what opening a source takes
        data, ends = memoryview(self._bytes), self._ends
        starts = itertools.islice(ends, len(self))
        hashes = np.fromiter(
            (
                hash(bytes(data[low:high]))
                for low, high in zip(starts, itertools.islice(ends, 1, None), strict=True)
            ),
            np.int64,
            len(self),
        )
        mixed = groups.astype(np.int64)
        # an odd multiplier spreads the groups over all bits
        mixed *= np.int64(0x9E3779B97F4A7C15 - (1 << 64))
        hashes ^= mixed
        hashes.sort()
        return int(np.count_nonzero(hashes[1:] == hashes[:-1]))
