"""Several sources as one, whose classes are those of the same name."""

from collections import Counter

import numpy as np

from pipelines.convert.protocol import Source, class_titles, is_sequential
from pipelines.system.terminal import printable


class MergedSource:
    """The images of several sources, one after the other; a class is all images of its name, in sorted order.

    Args:
        sources: at least one; each has class names, or no labels.

    Raises:
        ValueError: the labels of one are numbers without names, which may mean other classes than another's.
    """

    kind = "merged"

    def __init__(self, sources: list[Source]) -> None:
        self._sources = sources
        self._starts = np.cumsum([0] + [len(source.labels) for source in sources])
        self.name = " + ".join(source.name for source in sources)
        self.sequential = any(map(is_sequential, sources))
        names: set[str] = set()
        titles: dict[str, str] = {}
        for source in sources:
            if source.class_names is None and (source.labels >= 0).any():
                raise ValueError(
                    f"--merge joins classes by their names, and {printable(source.name)} has numbers only; give its "
                    "labels with names, or convert it alone"
                )
            own = source.class_names or []
            names.update(own)
            titles.update(zip(own, class_titles(source) or (), strict=False))
        self.class_names = sorted(names) or None
        self.class_titles = [titles.get(name, name) for name in sorted(names)] if titles else None
        position = {name: k for k, name in enumerate(sorted(names))}
        self.labels = np.concatenate([_renumbered(source, position) for source in sources])
        shared = Counter(source.name for source in sources)
        # two sources of one name are told apart by their numbers
        self._prefixes = [
            f"{k}-{source.name}" if shared[source.name] > 1 else source.name
            for k, source in enumerate(sources, 1)
        ]
        self.remarks = [
            f"{printable(source.name)}: {remark}" for source in sources for remark in source.remarks
        ]
        self.remarks += [
            f"{printable(source.name)}: {len(source.labels):,} images, {len(source.class_names or []):,} classes"
            for source in sources
        ]

    def item(self, index: int) -> str:
        number, local = self._place(index)
        return f"{self._prefixes[number]}/{self._sources[number].item(local)}"

    def read(self, index: int) -> bytes | np.ndarray:
        number, local = self._place(index)
        return self._sources[number].read(local)

    def _place(self, index: int) -> tuple[int, int]:
        """Return the number of an image's source, and its number there."""
        number = int(np.searchsorted(self._starts, index, "right")) - 1
        return number, index - int(self._starts[number])


def _renumbered(source: Source, position: dict[str, int]) -> np.ndarray:
    new = np.array([position[name] for name in source.class_names or []] + [-1])
    return new[source.labels] if source.class_names else np.full(len(source.labels), -1)
