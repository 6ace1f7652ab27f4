"""Arguments: tyro reads them, and what it has to say against them becomes one line, as all errors here."""

import functools
import io
import re
from collections.abc import Callable
from contextlib import redirect_stderr
from typing import Any

import tyro


def parse(kind: Callable[..., Any], argv: list[str], prog: str, **options: Any) -> Any:
    """Make a `kind` (a dataclass, say) of the arguments.

    Args:
        kind: what the arguments are of, as `tyro.cli` takes it.
        argv: the arguments.
        prog: the command's name, for the help text.
        options: of `tyro.cli`.

    Raises:
        ValueError: the arguments don't fit; one line says why.
        SystemExit: help was asked for and printed.
    """
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            return tyro.cli(kind, args=argv, prog=prog, **options)
    except SystemExit as stop:
        if not stop.code:
            raise
        raise ValueError(f"{_one_line(said.getvalue())}; see {prog} --help") from None


def call(function: Callable[..., Any], argv: list[str], prog: str, **options: Any) -> Any:
    """Call the function with the arguments, and return what it does; otherwise as `parse`."""

    # what the function itself writes and raises is none of the parser's business: it runs afterwards
    @functools.wraps(function)
    def later(*args: Any, **keywords: Any) -> Callable[[], Any]:
        return functools.partial(function, *args, **keywords)

    return parse(later, argv, prog, **options)()


def _one_line(box: str) -> str:
    """The text in one of tyro's boxes: its parts, which rules divide, without its title and the hint at --help."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", box).strip("\n").splitlines()
    # a border and a space on the left; on the right a border, or nothing where the terminal can't draw one
    lines = [line[2:].rstrip().removesuffix("│").rstrip() for line in plain]
    parts, part = [], []
    for line in [*lines[1:], ""]:
        if line.strip("─-"):
            part.append(line)
        elif part:
            parts.append(_text(part))
            part = []
    text = "; ".join(part for part in parts if not part.startswith("For full helptext"))
    return re.sub(r"Error parsing [\w.-]+: ", "", text) or " ".join(box.split())


def _text(part: list[str]) -> str:
    if part[0].startswith("Missing from"):  # then the arguments, and further indented what each is for
        return "missing " + ", ".join(line.strip() for line in part[1:] if not line.startswith(" " * 8))
    return " ".join(line.strip() for line in part)
