"""Groups: the views of a set, ordered by the shape of the arrays that hold them.

A set of views is a tuple of ViewSpecs.  Consecutive specs of one size make a group, whose views share one array:

    BYOL   (224 px ×1, 224 px ×1)   one group of 2 views     [2, B, 3, 224, 224]
    DINO   (224 px ×2, 96 px ×8)    two groups, 2 and 8      [2, B, 3, 224, 224], [8, B, 3, 96, 96]

Views are numbered through all groups, and the drawn numbers of all of them are one table.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from pipelines.views.spec import ViewSpec

MAX_VIEWS = 64
"""Maximum number of views of an image, over all specs."""


@dataclass(frozen=True)
class Group:
    """Consecutive views of one size."""

    specs: tuple[ViewSpec, ...]
    first: int
    """Number of its first view."""

    @property
    def size(self) -> int:
        """Height and width of its views, pixels."""
        return self.specs[0].size

    @property
    def num_views(self) -> int:
        return sum(spec.num_views for spec in self.specs)

    @property
    def views(self) -> slice:
        """Its views among all, to index ViewParams with."""
        return slice(self.first, self.first + self.num_views)


def as_specs(views: ViewSpec | Sequence[ViewSpec]) -> tuple[ViewSpec, ...]:
    """Return a set of views as a tuple of specs.

    Raises:
        TypeError: something else than ViewSpecs.
        ValueError: no spec, more than MAX_VIEWS views, or specs of different mean or std.
    """
    specs = (
        (views,)
        if isinstance(views, ViewSpec)
        else tuple(views)
        if isinstance(views, (list, tuple))
        else None
    )
    if specs is None or not all(isinstance(spec, ViewSpec) for spec in specs):
        raise TypeError(f"views must be a ViewSpec or a sequence of them, got {views!r}")
    if not specs:
        raise ValueError("views must hold at least one ViewSpec, got none")
    if (count := sum(spec.num_views for spec in specs)) > MAX_VIEWS:
        raise ValueError(f"views must be at most {MAX_VIEWS} of an image, got {count}")
    for spec in specs[1:]:
        for name in ("mean", "std"):
            if getattr(spec, name) != getattr(specs[0], name):
                raise ValueError(
                    f"views must have one {name}, because one encoder sees all of them; "
                    f"got {getattr(specs[0], name)} and {getattr(spec, name)}"
                )
    return specs


def groups_of(specs: tuple[ViewSpec, ...]) -> tuple[Group, ...]:
    """Return the groups of a set of views, in the order of the views.

    >>> [(g.size, g.first, g.num_views) for g in groups_of((ViewSpec(224), ViewSpec(96, num_views=6)))]
    [(224, 0, 2), (96, 2, 6)]
    """
    groups, first = [], 0
    for _, members in groupby(specs, lambda spec: spec.size):
        groups.append(Group(tuple(members), first))
        first += groups[-1].num_views
    return tuple(groups)
