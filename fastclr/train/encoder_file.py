"""The encoder of a run in one file, `encoder.safetensors`: weights, and metadata to rebuild it and make its images.

Each metadata entry is JSON:

    encoder, kwargs    which encoder: a key of `fastclr.model.ENCODERS` and its arguments
    size, mean, std    how images are made for it
    sha256             checksum of everything else in the file
    …                  further information (precision, step)

Files of fastclr 0.1 have no checksum, and `depth`, `width`, `stem` and `sk_ratio` instead of `encoder`.
"""

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastclr.model import make_encoder
from fastclr.train.weights_file import (
    CHECKSUM,
    check,
    decoded,
    find_weights,
    read_unchecked,
    rebuilding,
    write_weights,
)
from pipelines.system.terminal import printable

ENCODER = "encoder.safetensors"
"""Name of the file in a run folder."""
VIEW_KEYS = ("size", "mean", "std")
"""Keys of the metadata that say how images are made for the encoder."""
RESNET_KEYS = ("depth", "width", "stem", "sk_ratio")
"""Keys of the metadata of fastclr 0.1 that say which ResNet it is: the arguments of `resnet`."""


def export_encoder(path: Path, encoder: nn.Module, meta: Mapping[str, Any]) -> None:
    """Write the encoder's weights, without a classifier, under their own names (those of a ResNet are torchvision's).

    Args:
        path: a .safetensors file.
        encoder: an encoder made by `make_encoder(meta["encoder"], **meta["kwargs"])`.
        meta: encoder and kwargs (or the arguments of `resnet` themselves), size (pixels), mean, std (per channel, on
            a scale of [0, 1]), and further information of JSON's types.

    Raises:
        OSError: the file can't be written.
    """
    meta = _with_encoder(dict(meta))
    assert all(key in meta for key in ("encoder", "kwargs", *VIEW_KEYS)), meta
    write_weights(path, encoder.state_dict(), meta)


def load_encoder(path: str | Path) -> tuple[nn.Module, dict[str, Any]]:
    """Rebuild the encoder from its file alone.

    Args:
        path: an `encoder.safetensors`, or the run folder that holds one.

    Returns:
        The encoder, in evaluation mode on the CPU, and the metadata that were given to `export_encoder`.  For files of
        fastclr 0.1, `encoder` and `kwargs` are added to them.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the file is corrupt, was not written by fastclr, or its weights don't fit its metadata.
    """
    path = find_weights(path, ENCODER, "no encoder here; `fastclr train` writes one")
    weights, metadata = read_unchecked(path)
    meta = decoded(metadata)
    if CHECKSUM in meta or "encoder" in meta:
        check(path, weights, metadata, meta.pop(CHECKSUM, None))
    else:
        meta = _with_encoder(meta)
    missing = [key for key in ("encoder", *VIEW_KEYS) if key not in meta]
    if missing:
        raise ValueError(f"{path} was not written by fastclr: its metadata lacks {', '.join(missing)}")
    with rebuilding(path):
        _check_views(meta)
        encoder = _rebuild(meta["encoder"], meta["kwargs"], weights)
    return encoder.eval(), meta


def encoder_title(meta: Mapping[str, Any]) -> str:
    """Return the title of a file's encoder, for tables.

    >>> encoder_title({"encoder": "resnet", "kwargs": {"depth": 18, "width": 0.5}})
    'ResNet-18 ×0.5'
    """
    if meta["encoder"] != "resnet":
        return printable(meta["encoder"], 80)
    kwargs = meta["kwargs"]
    stages = f" of {kwargs['stages']} stages" if kwargs.get("stages", 4) != 4 else ""
    return f"ResNet-{kwargs['depth']} ×{kwargs['width']:g}{stages}"


def _with_encoder(meta: dict[str, Any]) -> dict[str, Any]:
    """Add `encoder` and `kwargs` to metadata of version 0.1."""
    if "encoder" in meta or not all(key in meta for key in RESNET_KEYS):
        return meta
    return {**meta, "encoder": "resnet", "kwargs": {key: meta[key] for key in RESNET_KEYS}}


def _check_views(meta: Mapping[str, Any]) -> None:
    size, kwargs = meta["size"], meta.get("kwargs")
    channels = [meta["mean"], meta["std"]]
    if type(size) is not int or not isinstance(kwargs, dict):
        raise ValueError(f"size is {size!r} and kwargs {kwargs!r}; they must be a whole number and a table")
    if not all(
        isinstance(c, list) and len(c) == 3 and all(type(v) in (int, float) for v in c) for c in channels
    ):
        raise ValueError(f"mean and std are {channels!r}; each must be three numbers")


def _rebuild(name: str, kwargs: dict[str, Any], weights: dict[str, Tensor]) -> nn.Module:
    # our ResNet is made without memory until the weights are known to fit: metadata of 0.1 may claim any size
    with torch.device("meta") if name == "resnet" else nullcontext():
        encoder = make_encoder(name, **kwargs)
    for key, tensor in encoder.state_dict().items():
        if key in weights and weights[key].dtype != tensor.dtype:
            raise ValueError(f"{key} is {weights[key].dtype}, and should be {tensor.dtype}")
    encoder.load_state_dict(weights, assign=name == "resnet")
    return encoder
