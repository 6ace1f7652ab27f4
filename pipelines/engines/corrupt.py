"""Counts the samples that could not be decoded."""

import os
import warnings

from pipelines.errors import CorruptSample

MAX_CORRUPT = 100
"""Maximum number of corrupt samples that are replaced before an engine gives up on the file."""


class CorruptSamples(dict[int, str]):
    """Corrupt samples so far, with the reasons.  A warning names each of them once.

    Raises:
        ValueError: from `add`, at the 101st sample, or when every sample is corrupt.
    """

    def __init__(self, path: str | os.PathLike, num_samples: int) -> None:
        super().__init__()
        self._path, self._max_corrupt = path, min(MAX_CORRUPT, num_samples - 1)

    def add(self, index: int, reason: str) -> None:
        """Record that a sample is corrupt."""
        new = index not in self
        self[index] = reason
        # raised in every worker, because one without the error would search for a replacement for ever
        if len(self) > self._max_corrupt:
            raise ValueError(
                f"{self._path}: {len(self)} corrupt samples, the last: {reason}; "
                "convert the images again with `fastclr convert --verify full`"
            )
        if new:
            warnings.warn(
                f"{reason}; replaced by the next sample ({len(self)} so far)", CorruptSample, stacklevel=2
            )
