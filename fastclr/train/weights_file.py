"""Weights in a `.safetensors` file, with metadata as JSON and a checksum over both."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as safetensors_bytes
from torch import Tensor

from pipelines.system.atomic_file import replacing, write_at
from pipelines.system.terminal import one_line, printable

CHECKSUM = "sha256"


def write_weights(path: Path, weights: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Write weights and metadata of JSON's types; the file appears whole or not at all.

    Raises:
        OSError: the file can't be written.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    metadata = {"format": "pt", **{key: json.dumps(value) for key, value in meta.items()}}
    metadata[CHECKSUM] = json.dumps(checksum(tensors, metadata))
    with replacing(path) as descriptor:
        write_at(descriptor, safetensors_bytes(tensors, metadata), 0, path)


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `write_weights` wrote.

    Raises:
        ValueError: the file is corrupt, or has no checksum.
    """
    weights, metadata = read_unchecked(path)
    meta = decoded(metadata)
    check(path, weights, metadata, meta.pop(CHECKSUM, None))
    return weights, meta


def find_weights(path: str | Path, name: str, hint: str) -> Path:
    """Return the path of a file of weights, given itself or as the run folder that holds it.

    Args:
        name: name of such a file in a run folder.
        hint: what writes one, for the error.

    Raises:
        FileNotFoundError: there is none.
    """
    path = Path(path)
    if path.is_dir():
        path /= name
    if not path.exists():
        raise FileNotFoundError(f"{path}: {hint}")
    return path


@contextmanager
def rebuilding(path: Path) -> Iterator[None]:
    """Turn what raises in the block, which makes a module and loads the weights of a file, into a ValueError."""
    try:
        yield
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = printable(one_line(error), 200)
        raise ValueError(f"{path}: the weights don't fit the metadata: {reason}") from None


def check(path: Path, weights: Mapping[str, Tensor], metadata: Mapping[str, str], expected: object) -> None:
    """Raise a ValueError if the checksum is another one."""
    if expected != checksum(weights, metadata):
        raise ValueError(
            f"{path} is corrupt: its checksum does not match its content; replace it by a copy, or continue the "
            "run, which writes it again"
        )


def read_unchecked(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read weights and metadata, whoever wrote them.

    Raises:
        ValueError: the file is corrupt, or no safetensors file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return weights, file.metadata() or {}
    # for an unknown type in the header, safetensors raises KeyError or TypeError
    except (SafetensorError, UnicodeError, RuntimeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is corrupt, or no safetensors file ({printable(error, 120)}); give the run folder or "
            "its encoder.safetensors"
        ) from None


def decoded(metadata: Mapping[str, str]) -> dict[str, Any]:
    """Return the metadata as they were given to `write_weights`; empty if they are not JSON."""
    try:
        return {key: json.loads(value) for key, value in metadata.items() if key != "format"}
    except (ValueError, RecursionError):
        return {}


def checksum(weights: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """Return the SHA-256 of the weights (names, types, shapes, bytes) and the metadata, without the checksum itself."""
    digest = hashlib.sha256()
    entries = sorted(item for item in metadata.items() if item[0] != CHECKSUM)
    digest.update(json.dumps(entries).encode())
    for name, tensor in sorted(weights.items()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
