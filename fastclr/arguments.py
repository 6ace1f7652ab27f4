"""Parses the arguments of a command with tyro."""

import io
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from pipelines.system.terminal import printable


def parse(kind: Callable[..., Any], argv: list[str], prog: str, **options: Any) -> Any:
    """Parse the arguments into a `kind`; see `tyro.cli`.

    Args:
        kind: a dataclass with a string under each field.
        argv: the arguments.
        prog: the command's name, for the help text.
        options: further options of `tyro.cli`, such as `default`.

    Raises:
        ValueError: `kind`, or a dataclass in it, rejects its values.
        SystemExit: help was printed (code 0), or tyro has reported a wrong argument (code 2).
    """
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            return tyro.cli(kind, args=argv, prog=prog, **options)
    except SystemExit as stop:
        refusal = _refusal(stop)
        if refusal is not None:
            raise refusal from None
        # an argument may be a file name, from a shell's pattern, that is not printable
        for line in said.getvalue().splitlines():
            print(printable(line), file=sys.stderr)
        raise


DataSet = Annotated[
    tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="FILE.beton", help_behavior_hint="")
]
"""Positional arguments that are the files of one data set; see `pipelines.beton.sets`."""


@dataclass(frozen=True)
class FieldNames:
    """Which fields of a file are read, where they have other names than "image" and "label"."""

    image_field: str | None = None
    """Name of the image field, in files of FFCV's; None: the one named image, or else the first of the kind."""
    label_field: str | None = None
    """Name of the label field; None: the one named label, or else the first of whole numbers."""

    def __iter__(self) -> Iterator[str | None]:
        """Yield both names, in the order in which BetonReader takes them."""
        return iter((self.image_field, self.label_field))


Fields = Annotated[FieldNames, tyro.conf.arg(name="")]
"""The options --image-field and --label-field of a command."""


def data_set(files: tuple[Path, ...]) -> Path | tuple[Path, ...]:
    """Return what a reader opens: the file, pattern, folder or index, or else the list of several.

    Raises:
        ValueError: there is none.
    """
    if not files:
        raise ValueError("FILE.beton is missing: give a file, a pattern in quotes, or a folder of shards")
    return files[0] if len(files) == 1 else files


def _refusal(stop: SystemExit) -> ValueError | None:
    """Return the error of a dataclass's own check, if that made tyro stop.

    The error is one sentence that names the setting, which tyro would wrap in a box.
    """
    error: BaseException | None = stop
    while error is not None:
        if isinstance(error, ValueError) and _raised_in(error, "__post_init__"):
            return error
        error = error.__context__
    return None


def _raised_in(error: BaseException, function: str) -> bool:
    return any(frame.f_code.co_name == function for frame, _ in traceback.walk_tb(error.__traceback__))
