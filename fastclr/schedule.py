"""Schedules: settings of the views and of the loss that change while a run goes on.

A scheduled setting is a function of the share of the run that is done, from 0 to 1, so the number of epochs stretches
the whole recipe:

    steps    value ─┐                       linear        ╱── value
                    └──── value                    value ╱

Settings of the loss change with every step.  Those of the views change at the start of an epoch, because an epoch's
views have one size; each epoch has the values of its middle, so a step takes place at the nearest start of an epoch.
"""

import itertools
import json
import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

from fastclr.optim import num_steps
from pipelines.views import ViewSpec, as_specs

Section = TypeVar("Section")
KINDS = ("steps", "linear")
CONSTANT = {
    *("views.mean", "views.std", "views.num_views", "views.center_crop_fraction"),
    *("loss.name", "loss.semi_hard"),
}
"""Settings of the two sections that can't be scheduled."""


@dataclass(frozen=True)
class Scheduled:
    """One setting as a function of the share of the run that is done."""

    name: str
    """Its name: views.NAME for all views, views[0].NAME for those of the first of several specs, or loss.NAME."""
    at: tuple[float, ...]
    """Shares of the run, rising, 0 to 1."""
    values: tuple[Any, ...]
    """Value at each of them; numbers, or tuples of numbers."""
    kind: str = "steps"
    """steps: a value holds until the next share; linear: straight lines, and constant before the first and after the
    last."""
    multiple_of: int = 1
    """Sizes between two values of a linear schedule are rounded to multiples of this."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "at", tuple(map(float, self.at)))
        values = tuple(tuple(each) if isinstance(each, list) else each for each in self.values)
        object.__setattr__(self, "values", values)

        def check(condition: bool, key: str, what: str) -> None:
            if not condition:
                raise ValueError(f"schedule.{self.name}: {key} is {getattr(self, key)!r}; it must be {what}")

        at = self.at
        check(self.kind in KINDS, "kind", " or ".join(KINDS))
        check(len(at) > 0 and all(0 <= share <= 1 for share in at), "at", "shares of the run, 0 to 1")
        check(all(a < b for a, b in itertools.pairwise(at)), "at", "rising")
        check(
            self.kind != "steps" or at[0] == 0,
            "at",
            "begun with 0.0, as the first value of steps holds from there",
        )
        check(len(values) == len(at), "values", f"{len(at)} values, one for each share in at")
        numbers = [number for value in values for number in _numbers(value)]
        check(all(map(_is_finite, numbers)), "values", "finite numbers, or lists of them")
        check(len({len(_numbers(value)) for value in values}) == 1, "values", "of one length")
        check(
            type(self.multiple_of) is int and self.multiple_of >= 1,
            "multiple_of",
            "a whole number, at least 1",
        )
        whole = all(type(number) is int and number % self.multiple_of == 0 for number in numbers)
        rounds = self.kind == "linear" and self._is_size and whole
        what = "left out, except for sizes of kind linear whose values are its multiples"
        check(self.multiple_of == 1 or rounds, "multiple_of", what)

    def value(self, share: float) -> Any:
        """Return the value where `share` of the run is done.

        >>> sizes = Scheduled("views.size", (0.0, 0.55), (16, 24))
        >>> sizes.value(0.5), sizes.value(0.55)
        (16, 24)
        >>> Scheduled("views.size", (0.7, 0.8), (160, 192), "linear", 8).value(0.74)
        176
        """
        after = bisect_right(self.at, share)
        if after == 0 or after == len(self.at) or self.kind == "steps":
            return self.values[max(after, 1) - 1]
        (low, high), (before, behind) = self.at[after - 1 : after + 1], self.values[after - 1 : after + 1]
        part = (share - low) / (high - low)
        between = [
            self._between(one, other, part)
            for one, other in zip(_numbers(before), _numbers(behind), strict=True)
        ]
        return tuple(between) if isinstance(before, tuple) else between[0]

    def _between(self, one: float, other: float, part: float) -> float:
        exact = one + (other - one) * part
        return math.floor(exact / self.multiple_of + 0.5) * self.multiple_of if self._is_size else exact

    @property
    def _is_size(self) -> bool:
        return self.name.endswith(".size")

    def table(self) -> str:
        """Return the schedule without its name, as an inline table of TOML."""
        rounding = f", multiple_of = {self.multiple_of}" if self.multiple_of > 1 else ""
        # JSON's strings, numbers and lists are valid TOML
        at, values, kind = (json.dumps(each) for each in (self.at, self.values, self.kind))
        return f"{{ at = {at}, values = {values}, kind = {kind}{rounding} }}"

    def __str__(self) -> str:
        """Return a phrase for the user: "views.size 16, 24 from 55 % on", "loss.temperature 0.1 at 0 % to …"."""
        shown = [", ".join(f"{number:g}" for number in _numbers(value)) for value in self.values]
        shown = [f"({text})" if isinstance(self.values[0], tuple) else text for text in shown]
        places = [f"{100 * share:.3g} %" for share in self.at]
        if self.kind == "steps":
            points = [f"{value} from {place} on" for value, place in zip(shown[1:], places[1:], strict=True)]
            return f"{self.name} {', '.join([shown[0], *points])}"
        return f"{self.name} " + " to ".join(
            f"{value} at {p}" for value, p in zip(shown, places, strict=True)
        )


def changed(section: Section, label: str, schedule: Sequence[Scheduled], share: float) -> Section:
    """Return a dataclass of settings as it is where `share` of the run is done.

    Args:
        section: a ViewSpec or a LossConfig.
        label: its name in the names of scheduled settings.

    Raises:
        ValueError: the dataclass refuses a value.
    """
    values = {
        each.name.rpartition(".")[2]: each.value(share)
        for each in schedule
        if each.name.rpartition(".")[0] == label
    }
    return replace(section, **values) if values else section  # type: ignore[type-var]


def views_at(
    specs: tuple[ViewSpec, ...], schedule: Sequence[Scheduled], share: float
) -> tuple[ViewSpec, ...]:
    """Return the specs of the views as they are where `share` of the run is done."""
    everywhere = [changed(spec, "views", schedule, share) for spec in specs]
    return tuple(changed(spec, f"views[{i}]", schedule, share) for i, spec in enumerate(everywhere))


def check_schedule(schedule: Sequence[Scheduled], specs: tuple[ViewSpec, ...], loss: Any) -> None:
    """Raise a ValueError unless every value is accepted: at the start of a run, and not when its time has come.

    Args:
        schedule: scheduled settings, sorted by name.
        specs: the views; their size must be the largest of the schedule, for which the encoder is built.
        loss: settings of the loss, a dataclass.
    """
    numbered = {f"views[{i}]": spec for i, spec in enumerate(specs)} if len(specs) > 1 else {}
    sections = {"loss": loss, "views": specs[0], **numbered}
    for number, each in enumerate(schedule):
        label, _, key = each.name.rpartition(".")
        common = f"{label.partition('[')[0]}.{key}"
        if label not in sections or key not in {field.name for field in fields(sections[label])}:
            raise ValueError(
                f"schedule.{each.name} is no setting of this recipe; it must be one of views or loss"
            )
        if common in CONSTANT or (common == "views.size" and label in numbered):
            raise ValueError(
                f"schedule.{each.name} can't change in a run; leave it out (views.size is that of all)"
            )
        if number and schedule[number - 1].name == each.name:
            raise ValueError(f"schedule.{each.name} is given twice; leave one out")
    for share in breakpoints(schedule) if schedule else ():
        try:
            as_specs(views_at(specs, schedule, share))
            changed(loss, "loss", schedule, share)
        except (ValueError, TypeError) as error:
            raise ValueError(f"schedule, at {share:.3g} of the run: {error}") from None
    for each in schedule:
        if each.name == "views.size" and {max(each.values)} != {spec.size for spec in specs}:
            raise ValueError(
                f"views.size is {specs[0].size}, and the largest of schedule.views.size {max(each.values)}; make "
                "them equal: the encoder is built, checked and exported for the largest size"
            )


def breakpoints(schedule: Sequence[Scheduled]) -> list[float]:
    """Return the shares at which to check a schedule: where a value begins to hold, and just before."""
    shares = {share for each in schedule for share in each.at}
    return sorted({0.0, 1.0} | shares | {max(0.0, math.nextafter(share, 0)) for share in shares})


def epoch_share(epoch: int, num_images: int, epochs: int, batch_size: int) -> float:
    """Return the share of a run that is done in the middle of an epoch of the loader, at most 1.

    The loader drops the incomplete last batch of an epoch, so a run takes a few more of its epochs than `epochs`.

    >>> [epoch_share(epoch, num_images=79, epochs=5, batch_size=20) for epoch in range(3)]  # 3 steps of 20 each
    [0.075, 0.225, 0.375]
    """
    steps_per_epoch = max(1, num_images // batch_size)
    return min(1.0, (epoch + 0.5) * steps_per_epoch / num_steps(num_images, epochs, batch_size))


def num_loader_epochs(num_images: int, epochs: int, batch_size: int) -> int:
    """Return the number of the loader's epochs that a run begins."""
    return -(-num_steps(num_images, epochs, batch_size) // max(1, num_images // batch_size))


def _numbers(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def _is_finite(number: Any) -> bool:
    return type(number) in (int, float) and math.isfinite(number)
