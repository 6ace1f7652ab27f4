"""The side-car of a `.beton` file: a JSON file beside it, for what the format has no room for.

`train.json` belongs to `train.beton` and tells the class names, where the images came from, and what was re-encoded or
left out.  The images can be read without it.
"""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from pipelines.system.atomic_file import replacing, write_at
from pipelines.system.terminal import one_line

FORMAT = "fastclr side-car 1"
"""Value of the key "format"; a JSON file without it is not a side-car."""
SET_FORMAT = "fastclr set 1"
"""Value of the key "format" in the index of a set of several files, which lies where a side-car would."""
CHECKSUM = "checksum"
"""Key of the checksum of all other keys."""
MAX_BYTES = 1 << 28
"""Maximum size of a side-car that is read, in bytes: ten times that of a set with a million images left out."""

# the writer puts this key first, so it is found even if the side-car is corrupt further down
_OUR_START = re.compile(rb'\s*\{\s*"format"\s*:\s*"fastclr (side-car|set) ')


def sidecar_path(beton: Path | str) -> Path:
    """Return the side-car that is read for a file: beside it, or else beside the file that a symbolic link points to.

    >>> sidecar_path("sets/train.beton").name
    'train.json'
    """
    path = Path(beton)
    beside = path.with_suffix(".json")
    if path.is_symlink() and not beside.exists():
        return path.resolve().with_suffix(".json")
    return beside


def read_sidecar(beton: Path | str) -> dict[str, Any] | None:
    """Return the side-car of a `.beton` file; None where there is none, or one of a file of another length.

    `BetonReader.sidecar` compares the fingerprint, too.

    Raises:
        ValueError: the side-car is corrupt: no valid JSON, or not the content that was written.
    """
    content = read_content(sidecar_path(beton))
    if content is None or content["format"] != FORMAT:
        return None
    return content if content.get("file_bytes") == Path(beton).stat().st_size else None


def read_content(path: Path) -> dict[str, Any] | None:
    """Return what a side-car or an index says; None where there is no such file, or it is neither.

    Raises:
        ValueError: it is damaged: no valid JSON, or other content than was written.
    """
    try:
        data = _read(path)
    except FileNotFoundError:
        return None
    if data is None:
        return None
    try:
        content = json.loads(data)
    # nesting of some thousand brackets is beyond the parser
    except (ValueError, RecursionError) as error:
        if not _OUR_START.match(data):
            return None
        raise ValueError(
            f"{path}: no valid JSON ({one_line(error)}); delete it, the images can be read without"
        ) from error
    if not isinstance(content, dict) or content.get("format") not in (FORMAT, SET_FORMAT):
        return None
    # files of version 0.1 have none
    checksum = content.pop(CHECKSUM, None)
    try:
        matches = checksum is None or checksum == _checksum(content)
    except RecursionError:
        matches = False
    if not matches:
        raise ValueError(
            f"{path}: its content is not what was written (checksum); delete it, the images can be read without, "
            f"or, if it was edited on purpose, delete its key {CHECKSUM!r}"
        )
    return content


def write_sidecar(beton: Path | str, content: dict[str, Any]) -> None:
    """Write the side-car of a file, or the index of a set of that name, with a checksum of its content.

    It goes beside `beton`, also where that is a symbolic link: BetonWriter replaces the link, not its target.

    Raises:
        OSError: no space left, the folder is not writable, or a file of that name is not a side-car.
    """
    path = check_sidecar_path(beton)
    content = {**content, CHECKSUM: _checksum(content)}
    with replacing(path) as file:
        write_at(file, json.dumps(content, indent=1).encode(), 0, path)


def check_sidecar_path(beton: Path | str) -> Path:
    """Return the path that the side-car of a file is written to: beside the file, even if that is a symbolic link.

    Raises:
        FileExistsError: a file of that name exists and is not a side-car, so it must not be overwritten.
    """
    path = Path(beton).with_suffix(".json")
    if path.exists() and not _is_ours(path):
        raise FileExistsError(
            f"{path} exists and is not a side-car of fastclr, so it is not overwritten: move it, "
            f"or choose another name than {Path(beton).name}"
        )
    return path


def _is_ours(path: Path) -> bool:
    """Whether a file is a side-car, possibly a corrupt one."""
    if not path.is_file():
        return False
    data = _read(path)
    if data is None:
        return False
    if _OUR_START.match(data):
        return True
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        return False
    return isinstance(content, dict) and content.get("format") in (FORMAT, SET_FORMAT)


def _read(path: Path) -> bytes | None:
    """Return the bytes of a file; None if it is too large or not a regular file."""
    # opening a named pipe would wait for a writer for ever
    if path.exists() and not path.is_file():
        return None
    with open(path, "rb") as file:
        data = file.read(MAX_BYTES + 1)
    return data if len(data) <= MAX_BYTES else None


def _checksum(content: dict[str, Any]) -> str:
    """Return a hash of the content, 32 hex digits; the order of keys and the white space do not matter."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
