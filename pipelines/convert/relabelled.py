"""A source whose labels come from elsewhere: from a table, or from the order of another set's classes."""

from collections.abc import Mapping, Sequence

import numpy as np

from pipelines.convert.protocol import Source, is_sequential


class Relabelled:
    """The images of a source, with other labels; some may be refused when they are read.

    Args:
        source: the images.
        labels: int64 [N], the label of each image, −1 where unknown.
        class_names: name of each label.
        class_titles: readable name of each label.
        faults: images that must not be read, by number, and why.
        missing: names of images that a table knows and the source has not, and why; they are numbered from N on, so
            that a conversion reports them as it does images that cannot be read.
    """

    def __init__(
        self,
        source: Source,
        labels: np.ndarray,
        class_names: list[str] | None,
        class_titles: list[str] | None = None,
        faults: Mapping[int, str] | None = None,
        missing: Sequence[tuple[str, str]] = (),
    ) -> None:
        self._source, self._faults, self._missing = source, faults or {}, missing
        self._num_images = len(labels)
        self.kind, self.name, self.sequential = source.kind, source.name, is_sequential(source)
        self.labels = np.concatenate([labels, np.full(len(missing), -1)])
        self.class_names, self.class_titles = class_names, class_titles
        self.remarks = list(source.remarks)

    def item(self, index: int) -> str:
        if index >= self._num_images:
            return self._missing[index - self._num_images][0]
        return self._source.item(index)

    def read(self, index: int) -> bytes | np.ndarray:
        if index >= self._num_images:
            raise ValueError(self._missing[index - self._num_images][1])
        if index in self._faults:
            raise ValueError(self._faults[index])
        return self._source.read(index)


def in_class_order(
    source: Source, class_names: list[str], class_titles: list[str] | None, of: str
) -> Relabelled:
    """Return a source whose classes have the numbers that they have in a list of classes.

    Args:
        source: images with class names.
        class_names: the classes in order.
        class_titles: their readable names.
        of: where the list is from, for the error of an image whose class is not in it.
    """
    assert source.class_names is not None
    position = {name: k for k, name in enumerate(class_names)}
    new = np.array([position.get(name, -1) for name in source.class_names] + [-1])
    labels = new[source.labels]
    faults = {
        int(k): f"its class, {source.class_names[source.labels[k]]!r}, is none of {of}"
        for k in np.flatnonzero((labels < 0) & (source.labels >= 0))
    }
    return Relabelled(source, labels, class_names, class_titles, faults)
