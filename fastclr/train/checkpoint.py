"""Checkpoints: the whole state of a run in `last.pt`, and its encoder alone in `encoder.safetensors`.

Both are written to a hidden file that is synced and renamed, so whatever happens, what stands under the name
is a whole file.
"""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as safetensors_bytes
from torch import Tensor, nn

from fastclr.model import resnet
from pipelines import TwoViewLoader
from pipelines.system.atomic_file import replacing

FORMAT = "fastclr checkpoint 1"
ENCODER = "encoder.safetensors"
"""In a run folder."""
STATE_KEYS = {"step", "identity", "model", "optimizer", "loader", "random"}
ENCODER_KEYS = ("depth", "width", "stem", "sk_ratio", "size", "mean", "std")
"""What the metadata of an encoder file must hold for it to be rebuilt and fed."""


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """A file that appears under its name when the `with` block has ended well, and leaves nothing otherwise.

    Raises:
        OSError: naming the file, if it can't be written.
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
        ValueError: the file is cut, or no checkpoint of fastclr.
    """
    with open(path, "rb") as file:
        try:
            state = torch.load(file, map_location="cpu", weights_only=True)
        except (
            Exception
        ) as error:  # torch raises RuntimeError, EOFError, UnpicklingError, KeyError … by the damage
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ValueError(
                f"{path} is cut or damaged ({reason[:120]}); start anew in another folder"
            ) from error
    if not isinstance(state, dict) or state.get("format") != FORMAT or not state.keys() >= STATE_KEYS:
        raise ValueError(f"{path} is no checkpoint of this version of fastclr")
    return state


def run_state(
    step: int,
    identity: Mapping[str, Any],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loader: TwoViewLoader,
) -> dict[str, Any]:
    """All that a run needs to go on as if it had not been interrupted.

    Args:
        step: steps done.
        identity: the settings that must be the same when the run is resumed.
        model, optimizer, loader: as they are after that step.
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
    """Put a state of `run_state` back into its parts, and torch's generators; returns the steps done.

    Raises:
        ValueError: a state of other parts.
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
            f"the checkpoint does not fit this model: {reason}; start anew in another --out"
        ) from error


def differences(saved: Mapping[str, object], now: Mapping[str, object]) -> list[str]:
    """Settings with two values, as "name was A, is now B".

    >>> differences({"train.epochs": 5, "train.seed": 0}, {"train.epochs": 6, "train.seed": 0})
    ['train.epochs was 5, is now 6']
    """
    names = [*saved, *(name for name in now if name not in saved)]
    return [
        f"{name} was {saved.get(name)!r}, is now {now.get(name)!r}"
        for name in names
        if saved.get(name) != now.get(name)
    ]


def export_encoder(path: Path, encoder: nn.Module, meta: Mapping[str, Any]) -> None:
    """Write the encoder in torchvision's ResNet key names, without a classifier.

    Args:
        path: a .safetensors file.
        encoder: what `fastclr.model.resnet` made.
        meta: what rebuilds and feeds it, values that JSON knows: depth, width, stem, sk_ratio, size (pixels), mean,
            std (per channel, on a scale of [0, 1]), and whatever else is worth knowing.  Each entry becomes
            one of the file's metadata, as JSON.

    Raises:
        OSError: the file can't be written.
    """
    assert all(key in meta for key in ENCODER_KEYS), meta
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in encoder.state_dict().items()}
    metadata = {"format": "pt", **{key: json.dumps(value) for key, value in meta.items()}}
    with atomic_write(path) as file:
        file.write(safetensors_bytes(weights, metadata))


def load_encoder(path: str | Path) -> tuple[nn.Module, dict[str, Any]]:
    """Rebuild the encoder from its file alone.

    Args:
        path: an `encoder.safetensors`, or the run folder that holds one.

    Returns:
        The encoder on the CPU, float32, in eval mode, mapping [B, 3, H, W] to [B, features], and the
        metadata: what `export_encoder` was given.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the file is cut, was not written by fastclr, or its weights don't fit its metadata.
    """
    path = Path(path)
    if path.is_dir():
        path = path / ENCODER
    if not path.exists():
        raise FileNotFoundError(f"{path}: no encoder here; `fastclr train` writes one")
    try:
        with safe_open(path, framework="pt") as file:
            weights: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(
            f"{path} is cut, or no safetensors file ({error}); give the run folder or its encoder.safetensors"
        ) from None
    try:
        meta = {key: json.loads(value) for key, value in metadata.items() if key != "format"}
    except json.JSONDecodeError:
        meta = {}
    missing = [key for key in ENCODER_KEYS if key not in meta]
    if missing:
        raise ValueError(f"{path} was not written by fastclr: its metadata lacks {', '.join(missing)}")
    encoder = resnet(meta["depth"], meta["width"], stem=meta["stem"], sk_ratio=meta["sk_ratio"])
    try:
        encoder.load_state_dict(weights)
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip()
        raise ValueError(f"{path}: the weights don't fit the metadata: {reason}") from None
    return encoder.eval(), meta
