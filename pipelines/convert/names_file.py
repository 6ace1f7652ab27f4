r"""The names of a file's images: `train.names` beside `train.beton`, one a line, in the order of the file.

A name is what the source calls an image; a backslash in it is written as `\\`, a line feed as `\n` and a
carriage return as `\r`, so that every line is one name.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipelines.beton.sidecar import FORMAT
from pipelines.system.atomic_file import replacing, write_at

_ESCAPES = {"\\": "\\\\", "\n": "\\n", "\r": "\\r"}
_NAMES = {escape: letter for letter, escape in _ESCAPES.items()}


class NamesWriter:
    """Collects names and writes them; `replacing` gives the file its name."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path, self._descriptor = path, descriptor
        self._pending: list[bytes] = []
        self._digest = hashlib.blake2b(digest_size=16)
        self._written = 0

    def add(self, name: str) -> None:
        self._pending.append(escape(name).encode() + b"\n")
        if len(self._pending) == 4096:
            self._flush()

    def finish(self) -> dict[str, Any]:
        """Write the last names; returns what the side-car says of the file."""
        self._flush()
        return {"bytes": self._written, "checksum": self._digest.hexdigest()}

    def _flush(self) -> None:
        data = b"".join(self._pending)
        write_at(self._descriptor, data, self._written, self._path)
        self._digest.update(data)
        self._written += len(data)
        self._pending = []


@contextmanager
def writing_names(beton: Path) -> Iterator[NamesWriter]:
    """Yield a writer of the names of a `.beton` file; the file appears whole at the end, or not at all."""
    path = names_path(beton)
    with replacing(path) as descriptor:
        yield NamesWriter(path, descriptor)


def names_path(beton: Path | str) -> Path:
    """Return where the names of a file are.

    >>> names_path("sets/train.beton").name
    'train.names'
    """
    return Path(beton).with_suffix(".names")


def check_names_path(beton: Path) -> None:
    """Raise FileExistsError where a file has the name of the one with names and is not ours."""
    path = names_path(beton)
    if os.path.lexists(path) and not _is_ours(path, beton):
        raise FileExistsError(
            f"{path} exists and holds no names that fastclr has written, so it is not overwritten: move it, or "
            f"choose another name than {beton.name}"
        )


def _is_ours(path: Path, beton: Path) -> bool:
    """Whether the side-car of `beton` describes a file of names of this length."""
    try:
        sidecar = json.loads(beton.with_suffix(".json").read_bytes())
        return bool(sidecar["format"] == FORMAT and sidecar["names"]["bytes"] == path.stat().st_size)
    # no side-car, one that is corrupt or from before there were names, or no file but a folder
    except (OSError, ValueError, RecursionError, KeyError, TypeError):
        return False


def read_names(beton: Path | str) -> list[str]:
    """Return the names of the images of a `.beton` file, in its order.

    Raises:
        OSError: there is no file of names beside it.
    """
    with open(names_path(beton), encoding="utf-8", newline="\n") as file:
        return [unescape(line.removesuffix("\n")) for line in file]


def escape(name: str) -> str:
    r"""Return a name on one line.

    >>> escape("a\nb\\c")
    'a\\nb\\\\c'
    """
    return re.sub(r"[\\\n\r]", lambda match: _ESCAPES[match[0]], name)


def unescape(line: str) -> str:
    """Return the name that a line stands for."""
    return re.sub(r"\\[\\nr]", lambda match: _NAMES[match[0]], line)
