"""The side-car of a `.beton` file: a JSON file beside it with what the format has no room for.

`train.beton` has `train.json`: class names, where the images came from, what was re-encoded or left out.
No part needs it to read the images.
"""

import json
from pathlib import Path
from typing import Any

from pipelines.system.atomic_file import replacing, write_at

FORMAT = "fastclr side-car 1"
"""Value of the key "format"; a JSON file without it is somebody else's."""


def sidecar_path(beton: Path | str) -> Path:
    """Where the side-car of a file lies: beside it, or beside the file that a symbolic link leads to.

    >>> sidecar_path("sets/train.beton").name
    'train.json'
    """
    path = Path(beton)
    beside = path.with_suffix(".json")
    if path.is_symlink() and not beside.exists():
        return path.resolve().with_suffix(".json")
    return beside


def read_sidecar(beton: Path | str) -> dict[str, Any] | None:
    """The side-car of a `.beton` file; None where there is none, or one of a file of another length.

    `BetonReader.sidecar` compares the fingerprint, too.

    Raises:
        ValueError: the side-car is no valid JSON.
    """
    path = sidecar_path(beton)
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(
            f"{path}: no valid JSON ({error}); delete it, the images can be read without"
        ) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        return None
    return content if content.get("file_bytes") == Path(beton).stat().st_size else None


def write_sidecar(beton: Path | str, content: dict[str, Any]) -> None:
    """Write the side-car of a file.  OSError: no space left, or the folder is not writable."""
    path = sidecar_path(beton)
    with replacing(path) as file:
        write_at(file, json.dumps(content, indent=1).encode(), 0, path)
