"""Results as files: frozen dataclasses that are written to JSON and read back.

A report is a dataclass of numbers, strings, lists, dicts and other such dataclasses.  The properties that a class names
in `derived` (a median, for example) are computed from the fields: they are written into the file for people and
scripts, and ignored when the file is read.
"""

import dataclasses
import json
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, ClassVar, TypeVar

RESULTS = Path(__file__).parents[1] / "results"

Report = TypeVar("Report")
Settings = dict[str, Any]
"""The settings of a command, in JSON's types; each command has its own."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A variant that was measured in rounds, in images per second, or the error that prevented it."""

    name: str
    images_per_s: list[float] = field(default_factory=list)
    """Source images per second, one value a round."""
    error: str = ""
    """Why it could not be measured."""
    derived: ClassVar[tuple[str, ...]] = ("median", "low", "high", "rounds")

    @property
    def median(self) -> float:
        """Median of the rounds; 0 if there are none."""
        return median(self.images_per_s) if self.images_per_s else 0.0

    @property
    def low(self) -> float:
        """The slowest round; 0 if there are none."""
        return min(self.images_per_s, default=0.0)

    @property
    def high(self) -> float:
        """The fastest round; 0 if there are none."""
        return max(self.images_per_s, default=0.0)

    @property
    def rounds(self) -> int:
        return len(self.images_per_s)


def check_out(out: Path | None) -> None:
    """Raise a ValueError, before anything is measured, unless `out` ends in .json."""
    if out is not None and out.suffix != ".json":
        raise ValueError(f"--out must end in .json, got {out}")


def check_at_least_1(options: object, *names: str) -> None:
    """Raise a ValueError that names the option if one of these fields is below 1; None stands for a default."""
    for name in names:
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} is {value}; it must be at least 1")


def save(path: Path, report: Any) -> None:
    """Write a report as JSON; its folder is made if it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(to_json(report), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def load(path: Path, kind: type[Report]) -> Report:
    """Read a report.

    Raises:
        ValueError: the file is not JSON, or not such a report; the message names the file and the field.
    """
    try:
        return from_json(kind, json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise ValueError(f"{path} is not a {kind.__name__}: {error}") from error


def to_json(value: Any) -> Any:
    """Return a report in JSON's types, including the derived properties.

    >>> to_json(Row(name="native", images_per_s=[2.0, 4.0]))["median"]
    3.0
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [*(item.name for item in dataclasses.fields(value)), *getattr(value, "derived", ())]
        return {name: to_json(getattr(value, name)) for name in names}
    if isinstance(value, dict):
        return {key: to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def from_json(kind: Any, data: Any, where: str = "") -> Any:
    """Return `data` as a `kind`; the reverse of `to_json`.

    Args:
        kind: a dataclass; list[…], tuple[…, ...], dict[str, …], a union, or a type of JSON.
        data: the parsed JSON.
        where: name of the field, for the message.

    Raises:
        ValueError: a field that the dataclass does not have, a field that is missing, or a value of another type.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _dataclass_from_json(kind, data, where)
    if origin in (types.UnionType, typing.Union):
        if data is None and type(None) in arguments:
            return None
        (kind,) = [argument for argument in arguments if argument is not type(None)][:1]
        return from_json(kind, data, where)
    if origin in (list, tuple):
        _check(isinstance(data, list), where, data, "a list")
        return origin(from_json(arguments[0], item, f"{where}[{number}]") for number, item in enumerate(data))
    if origin is dict:
        _check(isinstance(data, dict), where, data, "an object")
        return {key: from_json(arguments[1], item, f"{where}.{key}") for key, item in data.items()}
    if kind is float:
        _check(isinstance(data, int | float) and not isinstance(data, bool), where, data, "a number")
        return float(data)
    if kind in (int, str, bool):
        _check(type(data) is kind, where, data, f"of type {kind.__name__}")
    return data


def _dataclass_from_json(kind: Any, data: Any, where: str) -> Any:
    _check(isinstance(data, dict), where, data, "an object")
    hints = typing.get_type_hints(kind)
    fields = {item.name: item for item in dataclasses.fields(kind)}
    unknown = data.keys() - fields - set(getattr(kind, "derived", ()))
    if unknown:
        raise ValueError(f"{where or kind.__name__} has a field {min(unknown)!r}, which it should not have")
    defaults = (dataclasses.MISSING, dataclasses.MISSING)
    missing = [
        name
        for name, item in fields.items()
        if name not in data and (item.default, item.default_factory) == defaults
    ]
    if missing:
        raise ValueError(f"{where or kind.__name__} lacks the field {missing[0]!r}")
    prefix = f"{where}." if where else ""
    return kind(
        **{name: from_json(hints[name], data[name], prefix + name) for name in fields if name in data}
    )


def _check(condition: bool, where: str, data: Any, what: str) -> None:
    if not condition:
        raise ValueError(f"{where or 'the report'} is {data!r:.60}; it must be {what}")
