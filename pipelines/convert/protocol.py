"""The protocol of a source of images: by number, with labels and names."""

from typing import Protocol

import numpy as np


class Source(Protocol):
    """Images by number, read from any thread."""

    kind: str
    """Kind of source, for the side-car."""
    name: str
    """Name of the source for the side-car, without its path."""
    labels: np.ndarray
    """int64 [N]: −1 where unknown."""
    class_names: list[str] | None
    """Name of each label; None where the names are not known."""
    remarks: list[str]
    """Remarks for the user, one printable line each."""

    def item(self, index: int) -> str:
        """Return the name of an image, for reports."""
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
