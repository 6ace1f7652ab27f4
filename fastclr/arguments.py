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
        raise ValueError(f"{_one_line(said.getvalue())}; {prog} --help") from None


def call(function: Callable[..., Any], argv: list[str], prog: str, **options: Any) -> Any:
    """Call the function with the arguments, and return what it does; otherwise as `parse`."""

    # what the function itself writes and raises is none of the parser's business: it runs afterwards
    @functools.wraps(function)
    def later(*args: Any, **keywords: Any) -> Callable[[], Any]:
        return functools.partial(function, *args, **keywords)

    return parse(later, argv, prog, **options)()


def _one_line(box: str) -> str:
    """The text in one of tyro's boxes: its parts, which rules divide, without its title and the hint at --help."""
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line)[1:-1].strip() for line in box.strip().splitlines()]
    parts, part = [], []
    for line in [*lines[1:], ""]:
        if line.strip("─-"):
            part.append(line)
        elif part:
            parts.append(" ".join(part))
            part = []
    text = "; ".join(part for part in parts if not part.startswith("For full helptext"))
    return re.sub(r"Error parsing [\w.-]+: ", "", text) or " ".join(box.split())
