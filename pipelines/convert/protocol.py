"""What a conversion reads from: images by number, with their labels and names."""

from typing import Protocol

import numpy as np


class Source(Protocol):
    """Images by number, read from any thread."""

    kind: str
    """What it is, for the side-car."""
    name: str
    """What the user would call it, for the side-car; no path."""
    labels: np.ndarray
    """int64 [N]: −1 where unknown."""
    class_names: list[str] | None
    """Name of each label, where they are known."""
    remarks: list[str]
    """What the user may want to know of it, a printable line each."""

    def item(self, index: int) -> str:
        """The name of an image, for reports."""
        ...

    def read(self, index: int) -> bytes | np.ndarray:
        """Return an image file's bytes, or uint8 [h, w, 3] pixels.

        Raises:
            OSError: the image cannot be read.
            ValueError: the image's file is too large, or stored in a way that is not read.
        """
        ...


def class_titles(source: Source) -> list[str] | None:
    """Return the readable name of each label, where the class names are codes, such as ImageNet's.

    It is the source's attribute `class_titles`, which it need not have.
    """
    return getattr(source, "class_titles", None)


def is_sequential(source: Source) -> bool:
    """Whether images are read many at a time, so that any other order than the source's own is slow.

    It is the source's attribute `sequential`, which it need not have.
    """
    return getattr(source, "sequential", False)
