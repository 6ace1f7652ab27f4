"""Checkpoints: the whole state of a run in `last.pt`.

It is written to a hidden file that is synced and renamed, so a file of that name is always complete.  It is a zip file,
as torch writes it; the checksums of its members are compared when it is read.
"""

import time
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import nn

from fastclr.train.encoder_file import ENCODER as ENCODER
from fastclr.train.encoder_file import export_encoder as export_encoder
from fastclr.train.encoder_file import load_encoder as load_encoder
from pipelines import TwoViewLoader
from pipelines.system.atomic_file import replacing
from pipelines.system.terminal import printable

FORMAT = "fastclr checkpoint 1"
STATE_KEYS = {"step", "identity", "model", "optimizer", "loader", "random"}


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Yield a file that gets its name when the `with` block has ended well; otherwise nothing is left of it.

    Raises:
        OSError: the file can't be written; the error names it.
    """
    try:
        with replacing(path) as descriptor, open(descriptor, "wb", closefd=False) as file:
            yield file
    except (OSError, RuntimeError) as error:
        # torch.save wraps the write error of a Python file into a RuntimeError of its own
        cause = error if isinstance(error, OSError) else error.__context__
        if isinstance(cause, OSError):
            raise OSError(cause.errno, cause.strerror, str(path)) from error
        raise


def save_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Write the state of a run: tensors, numbers, strings, and lists and dicts of them.

    Raises:
        OSError: no space left, no permission; the previous checkpoint is then still there.
    """
    with atomic_write(path) as file:
        torch.save({"format": FORMAT, **state}, file)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read what `save_checkpoint` wrote, onto the CPU; executes nothing from the file.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the file is corrupt, or no checkpoint of fastclr.
    """
    with open(path, "rb") as file:
        try:
            _check_members(file)
            file.seek(0)
            state = torch.load(file, map_location="cpu", weights_only=True)
        # zipfile and torch raise many errors for corrupt files: BadZipFile, RuntimeError, UnpicklingError, KeyError …
        except Exception as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ValueError(
                f"{path} is corrupt ({printable(reason, 120)}); replace it by a copy, or start a new run in another "
                "--out"
            ) from error
    if not isinstance(state, dict) or state.get("format") != FORMAT or not state.keys() >= STATE_KEYS:
        raise ValueError(f"{path} is no checkpoint of this version of fastclr")
    return state


def _check_members(file: BinaryIO) -> None:
    """Compare each member of the zip file with its CRC-32, which torch writes but does not check."""
    with zipfile.ZipFile(file) as archive:
        corrupt = archive.testzip()
    if corrupt is not None:
        raise zipfile.BadZipFile(f"the checksum of {corrupt} is wrong")


def run_state(
    step: int,
    identity: Mapping[str, Any],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loader: TwoViewLoader,
) -> dict[str, Any]:
    """Return everything that a run needs to continue as if it had not been interrupted.

    Args:
        step: number of steps done.
        identity: the settings that must be the same when the run is resumed.
        model, optimizer, loader: the parts of the run, after that step.
    """
    return {
        "step": step,
        "identity": dict(identity),
        "time": time.time(),
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "loader": loader.state_dict(),
        "random": {
            "cpu": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None,
        },
    }


def restore(
    state: Mapping[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer, loader: TwoViewLoader
) -> int:
    """Restore model, optimizer, loader and torch's generators from a `run_state`; return the steps done.

    Raises:
        ValueError: the state does not fit these parts.
    """
    try:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        loader.load_state_dict(state["loader"])
        torch.set_rng_state(state["random"]["cpu"])
        if state["random"]["cuda"] is not None and torch.cuda.is_initialized():
            torch.cuda.set_rng_state(state["random"]["cuda"])
        return state["step"]
    except (KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"the checkpoint does not fit this model: {reason}; start a new run in another --out"
        ) from error


def differences(
    saved: Mapping[str, object], now: Mapping[str, object], defaults: Mapping[str, object] | None = None
) -> list[str]:
    """Return the settings that differ, each as "name was A, is now B".

    A setting that is missing in `saved`, because an older version wrote it, had the value in `defaults`.

    >>> differences({"train.epochs": 5, "train.seed": 0}, {"train.epochs": 6, "train.seed": 0})
    ['train.epochs was 5, is now 6']
    >>> differences({}, {"model.encoder": "resnet"}, defaults={"model.encoder": "resnet"})
    []
    """
    saved = {**{name: value for name, value in (defaults or {}).items() if name in now}, **saved}
    names = [*saved, *(name for name in now if name not in saved)]
    return [
        f"{name} was {saved.get(name)!r}, is now {now.get(name)!r}"
        for name in names
        if saved.get(name) != now.get(name)
    ]
