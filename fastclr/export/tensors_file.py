"""Reads the tensors of a checkpoint of any project; executes nothing from the file."""

import argparse
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pipelines.system.terminal import one_line, printable

MAX_NESTING = 12
"""Tables in tables that are searched for tensors: VISSL nests five."""
# the function that pickle makes a NumPy number with; it has no public name
_SCALAR = np.float64(0).__reduce__()[0]

PLAIN_CLASSES: list[Any] = [
    # what training scripts save beside the weights, and what holds nothing but values
    argparse.Namespace,
    np.dtype,
    *((_SCALAR, f"numpy.{module}.multiarray.scalar") for module in ("_core", "core")),
    *(getattr(np.dtypes, name) for name in ("Float64DType", "Float32DType", "Int64DType", "Int32DType")),
]
"""Classes that a checkpoint may hold although torch does not know them."""


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return all tensors of a .pth, .ckpt or .safetensors, on the CPU.

    A tensor in nested tables is named by their keys with dots between: `state_dict.backbone.conv1.weight`.

    Raises:
        OSError: the file can't be read.
        ValueError: it is no checkpoint, it is corrupt, it holds code, or no tensors.
    """
    with open(path, "rb") as file:
        start = file.read(16)
    content = _read_safetensors(path) if _is_safetensors(start) else _read_pickle(path)
    tensors = dict(_flat(content))
    if not tensors:
        raise ValueError(f"{path} holds no tensors; give a checkpoint that holds an encoder's state_dict")
    return tensors


def read_metadata(path: Path) -> dict[str, str]:
    """Return the metadata of a .safetensors; empty for any other file, and for one that is corrupt."""
    with open(path, "rb") as file:
        start = file.read(16)
    if not _is_safetensors(start):
        return {}
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    # for an unknown type in the header, safetensors raises KeyError or TypeError
    except (SafetensorError, UnicodeError, RuntimeError, KeyError, TypeError, ValueError):
        return {}


def _is_safetensors(start: bytes) -> bool:
    """Whether a file begins with the length of a header, and the header: JSON."""
    return len(start) > 8 and start[8:9] == b"{"


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, UnicodeError, RuntimeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is corrupt ({printable(one_line(error), 120)}); replace it by a copy"
        ) from None


def _read_pickle(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals(PLAIN_CLASSES):
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    # zipfile and torch raise many errors for corrupt files: BadZipFile, RuntimeError, UnpicklingError, EOFError …
    except Exception as error:
        text = str(error)
        if code := re.search(r"(?:GLOBAL|class|global:?) `?([\w.]+)`? was not an allowed global", text):
            raise ValueError(
                f"{path} holds code ({printable(code[1], 80)}), which is not run; save the weights alone: "
                "torch.save(model.state_dict(), PATH)"
            ) from None
        if "TorchScript" in text:
            raise ValueError(f"{path} is a TorchScript program; save its state_dict() instead") from None
        raise ValueError(
            f"{path} is no checkpoint that torch can load without running code "
            f"({printable(one_line(error), 120)}); give a .pth, .ckpt or .safetensors with a state_dict"
        ) from None


def _flat(content: Any, path: str = "", nesting: int = 0) -> list[tuple[str, Tensor]]:
    if isinstance(content, Tensor):
        return [(path, content)]
    if not isinstance(content, Mapping) or nesting > MAX_NESTING:
        return []
    return [
        item
        for key, value in content.items()
        for item in _flat(value, f"{path}.{key}" if path else f"{key}", nesting + 1)
    ]
