"""Settings of fastclr 0.1 by their names of today: recipes, runs and commands may still use the old ones."""

import warnings
from typing import Any

from pipelines.views.spec import RENAMED

SETTINGS = {
    **{f"views.{old}": f"views.{new}" for old, new in RENAMED.items()},
    "model.head_hidden": "model.proj_hidden_dim",
    "model.head_out": "model.proj_dim",
}
"""Old name → new name."""
VALUES = {("loss.name", "margin"): "margin_triplet"}
"""(name, old value) → new value."""


class RenamedSetting(FutureWarning):
    """A command was given a setting or a value by its old name."""


def current(name: str, value: Any) -> tuple[str, Any]:
    """Return the name of a setting and its value as they are today.

    >>> current("model.head_out", 64), current("loss.name", "margin")
    (('model.proj_dim', 64), ('loss.name', 'margin_triplet'))
    """
    name = SETTINGS.get(name, name)
    return name, VALUES.get((name, value), value) if isinstance(value, str) else value


def current_arguments(argv: list[str]) -> list[str]:
    """Return a command's arguments with today's names of settings, and warn about each old one."""
    found: list[str] = []
    for i, word in enumerate(argv):
        option, equals, value = word.partition("=")
        name = option.removeprefix("--").replace("-", "_")
        previous = found[-1].removeprefix("--").replace("-", "_") if i else ""
        if option.startswith("--") and name in SETTINGS:
            _warn(option, f"--{SETTINGS[name]}")
            option, name = f"--{SETTINGS[name]}", SETTINGS[name]
        if (name, value) in VALUES:
            _warn(value, VALUES[name, value])
            value = VALUES[name, value]
        if (previous, word) in VALUES:
            _warn(word, VALUES[previous, word])
            option = VALUES[previous, word]
        found.append(f"{option}{equals}{value}")
    return found


def _warn(old: str, new: str) -> None:
    warnings.warn(
        f"{old} is now {new}; the old name goes with the next release", RenamedSetting, stacklevel=3
    )
