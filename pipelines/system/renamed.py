"""Old names of fields and arguments, which work for one more release, with a DeprecationWarning."""

import warnings
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, ParamSpec, TypeVar

Params = ParamSpec("Params")
Result = TypeVar("Result")


def accept_old_fields(kind: type, renamed: Mapping[str, str]) -> None:
    """Let a dataclass take, and have, fields by their old names.

    Args:
        kind: the dataclass; changed in place.
        renamed: old name → new name.
    """
    kind.__init__ = accept_old_arguments(kind.__name__, renamed)(kind.__init__)  # type: ignore[misc]
    accept_old_attributes(kind, renamed)


def accept_old_attributes(kind: type, renamed: Mapping[str, str]) -> None:
    """Let a class have attributes by their old names; its constructor, which may be called often, stays as it is."""
    for old, new in renamed.items():
        setattr(kind, old, _old_attribute(kind.__name__, old, new))


def accept_old_arguments(
    owner: str, renamed: Mapping[str, str]
) -> Callable[[Callable[Params, Result]], Callable[Params, Result]]:
    """Return a decorator that lets a function take keyword arguments by their old names.

    Args:
        owner: name of the function or class, for the warning.
        renamed: old name → new name.

    >>> @accept_old_arguments("area", {"width": "side"})
    ... def area(side):
    ...     return side * side
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     area(width=3), len(caught)
    (9, 1)
    """

    def decorate(function: Callable[Params, Result]) -> Callable[Params, Result]:
        @wraps(function)
        def by_any_name(*args: Params.args, **values: Params.kwargs) -> Result:
            for old in renamed.keys() & values.keys():
                _warn(owner, old, renamed[old])
                values[renamed[old]] = values.pop(old)
            return function(*args, **values)

        return by_any_name

    return decorate


def _old_attribute(owner: str, old: str, new: str) -> property:
    def read(self: Any) -> Any:
        _warn(owner, old, new)
        return getattr(self, new)

    return property(read)


def _warn(owner: str, old: str, new: str) -> None:
    message = f"{owner}.{old} is now {new}; the old name goes with the next release"
    warnings.warn(message, DeprecationWarning, stacklevel=3)
