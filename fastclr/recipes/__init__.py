"""Recipes: a training run as a TOML file, one section per dataclass of `fastclr.config`, or several `[[views]]`.

The header of a recipe gives its command, the hardware, the wall time and the accuracy to expect, and says
whether that was measured or is cited.
"""

import dataclasses
import difflib
import json
import re
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from fastclr.config import MAX_WHOLE_NUMBER, Config, LossConfig, flatten
from fastclr.renamed import current
from fastclr.schedule import Scheduled
from pipelines.system.terminal import printable
from pipelines.views import ViewSpec

RECIPES_DIR = Path(__file__).parent
CONFIG_FILE = "config.toml"
"""The recipe that a run writes to its folder: its settings, including those of the command line."""
MAX_BYTES = 1 << 20
"""Maximum size of a recipe in bytes; those of the package have 1 or 2 kB."""
_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "a string"}


def recipe_names() -> list[str]:
    """Return the names of the recipes that come with the package; those of the speedruns are speedrun/RUNG."""
    paths = (path.relative_to(RECIPES_DIR).with_suffix("") for path in RECIPES_DIR.rglob("*.toml"))
    return sorted(path.as_posix() for path in paths)


def recipe_from_arguments(argv: list[str], command: str) -> Config:
    """Return the recipe that the first argument names: its settings are the defaults of the other arguments.

    If only help is asked for, return the defaults of `Config`.

    Raises:
        ValueError: the first argument is no recipe; the message shows how to call `command`.
        OSError: a file that can't be read.
    """
    if argv and not argv[0].startswith("-"):
        return load_recipe(argv[0])
    if {"-h", "--help"} & set(argv):
        return Config()
    raise ValueError(
        f"the recipe comes first: {command} RECIPE FILE.beton; recipes are "
        f"{', '.join(recipe_names())}, or the path of a TOML file"
    )


def load_recipe(name_or_path: str) -> Config:
    """Read a recipe: one of the package's by its name, or any TOML file or run folder by its path.

    Settings that the file leaves out have the default of their dataclass; `[views]`, and each of several `[[views]]`,
    starts from `ViewSpec.simclr(size)`.

    Raises:
        ValueError: no such recipe, no valid TOML, an unknown key (the message has the nearest valid one), or
            a value of the wrong type or outside its range.
        OSError: a file that can't be read.
    """
    path = RECIPES_DIR / f"{name_or_path}.toml"
    if name_or_path not in recipe_names():
        path = Path(name_or_path)
        if path.is_dir():
            path /= CONFIG_FILE
        if not path.suffix and not path.exists():
            raise ValueError(
                f"no recipe {name_or_path!r}; there are {', '.join(recipe_names())}, or give the path of a TOML file"
            )
    if path.suffix == ".beton":
        raise ValueError(f"{path} is a file of images, where a recipe is needed: {', '.join(recipe_names())}")
    try:
        return from_table(_read(path))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _read(path: Path) -> dict[str, Any]:
    """Read the tables of a TOML file.

    Raises:
        ValueError: it is too large, no TOML, or nested too deeply for Python's parser.
    """
    with open(path, "rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ValueError(f"a file of more than {MAX_BYTES >> 20} MiB is no recipe")
    try:
        return tomllib.loads(content.decode())
    except RecursionError:
        raise ValueError("not valid as a recipe: brackets nested too deeply") from None
    # Python also raises ValueError for a number of more than 4,300 digits
    except ValueError as error:
        raise ValueError(f"not valid TOML: {printable(error, 300)}") from None


def default_run_folder(name_or_path: str) -> Path:
    """Return the default run folder of a recipe: the recipe itself if it is a run folder, else runs/RECIPE."""
    path = Path(name_or_path)
    if name_or_path not in recipe_names() and path.is_dir():
        return path
    return Path("runs") / path.stem


def from_table(table: dict[str, Any]) -> Config:
    """Make a Config from nested tables, as a TOML parser gives them.

    >>> from_table({"train": {"epochs": 50}}).train.epochs
    50
    >>> [spec.blur_p for spec in from_table({"views": [{"blur_p": 1}, {"blur_p": 0.1}]}).view_specs]
    [1.0, 0.1]

    Raises:
        ValueError: an unknown section or key, a value of the wrong type or outside its range.
    """
    known = flatten(Config())
    types = get_type_hints(Config)
    sections: dict[str, Any] = {}
    for name, given in table.items():
        if name not in types:
            raise ValueError(f"unknown section [{_shown(name)}]{_nearest(name, [*types, *known])}")
        if name == "schedule" and isinstance(given, dict):
            sections[name] = tuple(_scheduled(*each, known) for each in _leaves(given))
        elif isinstance(given, dict):
            sections[name] = _section(name, given, known)
        elif name == "views" and _is_array_of_tables(given):
            sections[name] = tuple(_section(f"views[{i}]", table, known) for i, table in enumerate(given))
        else:
            several = " (or several, [[views]])" if name == "views" else ""
            raise ValueError(f"{name} is {_shown(given)}; it must be a section, [{name}]{several}")
    return Config(**sections)


def _is_array_of_tables(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(isinstance(each, dict) for each in value)


def _section(label: str, table: dict[str, Any], known: Iterable[str]) -> Any:
    """Make the dataclass of a section.

    Args:
        label: the section's name; of several `[[views]]`, with their number: views[1].
        table: the settings, perhaps by their old names.
        known: names of all settings, for hints.
    """
    name = label.partition("[")[0]
    kind = ViewSpec if name == "views" else get_type_hints(Config)[name]
    hints = get_type_hints(kind)
    values = {}
    for old_key, old_value in table.items():
        full_name, value = current(f"{name}.{old_key}", old_value)
        key = full_name.partition(".")[2]
        if key not in hints:
            numbered = [re.sub(f"^{name}\\.", f"{label}.", each) for each in known]
            raise ValueError(f"unknown key {label}.{_shown(key)}{_nearest(f'{label}.{key}', numbered)}")
        values[key] = _checked(f"{label}.{key}", value, hints[key])
    if kind is not ViewSpec:
        return kind(**values)
    try:
        return ViewSpec.simclr(**values)
    except ValueError as error:
        raise ValueError(f"{label}: {error}" if label != name else f"{error}") from None


def _leaves(table: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted names of a schedule's settings with their tables; TOML makes nested tables of `views.size`."""
    for key, value in table.items():
        name = f"{prefix}{key}"
        if "." not in name and isinstance(value, dict):
            yield from _leaves(value, f"{name}.")
        else:
            yield name, value


def _scheduled(name: str, table: Any, known: Iterable[str]) -> Scheduled:
    """Make the schedule of one setting; `known` are the names of all settings, for hints."""
    label, shown = re.sub(r"^views\[\d+\]\.", "views.", name), _shown(name)
    section, _, key = label.rpartition(".")
    types = get_type_hints({"views": ViewSpec, "loss": LossConfig}.get(section, Scheduled))
    if section not in ("views", "loss") or key not in types:
        nearest = _nearest(label, [each for each in known if each.startswith(("views.", "loss."))])
        raise ValueError(f"unknown setting schedule.{shown}{nearest}")
    example = "{ at = [0.0, 0.5], values = [A, B] }"
    if not isinstance(table, dict) or not table.keys() >= {"at", "values"}:
        raise ValueError(
            f"schedule.{shown} is {_shown(table)}; it must be a table with at and values: {example}"
        )
    hints = {"at": float, "values": types[key], "kind": Literal["steps", "linear"], "multiple_of": int}
    values: dict[str, Any] = {}
    for field, value in table.items():
        if field not in hints:
            raise ValueError(f"unknown key schedule.{shown}.{_shown(field)}; there are {', '.join(hints)}")
        several = field in ("at", "values")
        if several and not isinstance(value, list):
            raise ValueError(f"schedule.{shown}.{field} is {_quoted(value)}; it must be a list")
        checked = [
            _checked(f"schedule.{shown}.{field}", each, hints[field])
            for each in (value if several else [value])
        ]
        values[field] = tuple(checked) if several else checked[0]
    return Scheduled(name, **values)


def to_toml(config: Config) -> str:
    """Return the config as TOML, which `load_recipe` reads back; settings that are None are left out."""
    lines = []
    for section in dataclasses.fields(config):
        value = getattr(config, section.name)
        if section.name == "schedule":
            names = [(each, json.dumps(each.name) if "[" in each.name else each.name) for each in value]
            lines += (
                ["[schedule]", *(f"{name} = {each.table()}" for each, name in names), ""] if names else []
            )
        elif isinstance(value, tuple):
            for each in value:
                lines += [f"[[{section.name}]]", *_toml_lines(each), ""]
        else:
            lines += [f"[{section.name}]", *_toml_lines(value), ""]
    return "\n".join(lines)


def _toml_lines(section: Any) -> list[str]:
    values = {key.name: getattr(section, key.name) for key in dataclasses.fields(section)}
    # JSON's strings, numbers, booleans and lists are valid TOML
    return [f"{name} = {json.dumps(value)}" for name, value in values.items() if value is not None]


def _nearest(name: str, known: Iterable[str]) -> str:
    """Return a hint at the key that was meant: the same key in another section, else one spelled alike."""
    same = [full for full in known if full.rpartition(".")[2] == name.rpartition(".")[2]]
    near = same or difflib.get_close_matches(name[:100], known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else "; `fastclr train --help` lists the keys"


def _shown(value: Any) -> str:
    """Return a value of a recipe for an error message: printable and short."""
    if isinstance(value, str):
        return printable(value, 80)
    if isinstance(value, list) and value and len(value) <= 8 and not any(map(_is_long, value)):
        return repr(value)
    if isinstance(value, (dict, list)) and value:
        return "a table" if isinstance(value, dict) else f"a list of {len(value)}"
    if isinstance(value, int) and abs(value) > MAX_WHOLE_NUMBER:
        return f"a number of about {int(value.bit_length() * 0.30103) + 1} digits"
    return printable(repr(value), 80)


def _is_long(value: Any) -> bool:
    return not isinstance(value, (int, float)) or (isinstance(value, int) and abs(value) > MAX_WHOLE_NUMBER)


def _checked(name: str, value: Any, hint: Any) -> Any:
    """Return the value in the type of its field, or raise a ValueError that names the type."""
    options = [option for option in get_args(hint) if option is not NoneType]
    # "type or None": TOML has no None
    if get_origin(hint) is UnionType:
        return _checked(name, value, options[0])
    if get_origin(hint) is Literal:
        # the type is compared because a list is not hashable, and true equals 1
        if type(value) is not type(options[0]) or value not in options:
            raise ValueError(f"{name} is {_quoted(value)}; it must be one of {', '.join(map(str, options))}")
        return value
    if get_origin(hint) is tuple:
        if not isinstance(value, list) or len(value) != len(options):
            raise ValueError(f"{name} is {_quoted(value)}; it must be a list of {len(options)} numbers")
        return tuple(_checked(name, item, option) for item, option in zip(value, options, strict=True))
    if type(value) is int and abs(value) > MAX_WHOLE_NUMBER:
        raise ValueError(f"{name} is {_shown(value)}; it must be below 2⁶⁴")
    if hint is float and type(value) is int:
        return float(value)
    # not isinstance, because true would pass for a number of epochs
    if type(value) is not hint:
        raise ValueError(f"{name} is {_quoted(value)}; it must be {_NAMES[hint]}")
    return value


def _quoted(value: Any) -> str:
    return repr(_shown(value)) if isinstance(value, str) else _shown(value)
