"""UnlabelledReader: a `.beton` file whose labels are struck out in memory, the only kind that a speedrun trains on."""

from functools import cached_property
from typing import Any

import numpy as np

from pipelines import BetonReader
from pipelines.beton.mapping import FileMap


class UnlabelledReader(BetonReader):
    """A `BetonReader` that gives every sample the label −1, knows no class names, and has no side-car.

    The labels are dropped while the file is opened; nothing that trains from this reader can get them.  A pickled
    reader, for an engine with processes of its own, opens the file in the same way.  The fingerprint is that of the
    file, so a run's record names the same data as an evaluation that reads the labels.
    """

    def _open(self, map: FileMap) -> None:
        super()._open(map)
        self.labels = np.full(len(self.labels), -1)
        self.labels.setflags(write=False)

    def _check_class_names(self) -> None:
        """Do nothing: without labels the classes of several files can't differ."""

    @cached_property
    def class_names(self) -> None:
        """None: the names are struck out, too."""
        return None

    @cached_property
    def sidecar(self) -> dict[str, Any] | None:
        """None: the side-car tells how many images of each class there are."""
        return None


def num_labels(reader: BetonReader) -> int:
    """Return the number of samples of which a reader knows the label."""
    return int((reader.labels >= 0).sum())


def check_unlabelled(reader: BetonReader) -> None:
    """Raise a ValueError if the reader knows a label, or the names of the classes."""
    labels = num_labels(reader)
    if labels or reader.class_names:
        raise ValueError(
            f"{reader.path} has labels ({labels} of {len(reader)} samples), which the training of a speedrun must not "
            "see; open it with fastclr.speedrun.unlabelled.UnlabelledReader"
        )
