"""The weights that torchvision and timm publish: `torchvision:NAME` and `timm:NAME` in place of a run."""

import os
import socket
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
from torch import nn

from fastclr.model import make_encoder
from fastclr.model.encoders import timm_encoder
from pipelines.system.terminal import one_line, printable

FAMILIES = ("torchvision", "timm")
HUB = "https://huggingface.co"
WEIGHTS = "model.safetensors"
"""Name of the file of weights in timm's repositories on the hub."""


def published_encoder(name: str, size: int | None = None) -> tuple[nn.Module, dict[str, Any]]:
    """Make a model with its published weights and without its classifier.

    Args:
        name: torchvision:NAME (its default weights), or timm:NAME, where NAME may have a tag: resnet50.a1_in1k.
        size: pixels of an image; None: as published.

    Returns:
        The encoder, in evaluation mode, and the metadata as `load_encoder` returns them.

    Raises:
        ValueError: no such model, one without published weights, or weights that can't be downloaded.
    """
    family, _, model = name.partition(":")
    encoder, meta = (_torchvision if family == "torchvision" else _timm)(name, model, size)
    return encoder.eval(), {"encoder": name, "kwargs": {"size": meta["size"]}, **meta, "source": name}


def _torchvision(name: str, model: str, size: int | None) -> tuple[nn.Module, dict[str, Any]]:
    from torchvision import models

    if model not in models.list_models(models):
        make_encoder(name, size=224)  # raises: it knows the similar names
    weights = models.get_model_weights(model).DEFAULT
    images = weights.transforms()
    size = size or int(images.crop_size[0])
    encoder = make_encoder(name, size=size)
    file = Path(torch.hub.get_dir(), "checkpoints", Path(urlsplit(weights.url).path).name)
    if not file.exists() and (reason := _no_network(weights.url)):
        raise _unreachable(name, OSError(reason))
    try:
        state = weights.get_state_dict(progress=False, check_hash=True)
    except (OSError, RuntimeError) as error:
        raise _unreachable(name, error) from None
    try:
        # all that the encoder lacks is the classifier
        missing, _ = encoder.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise ValueError(f"{name} has published weights for other shapes: {one_line(error)[:200]}") from None
    if missing:
        raise ValueError(f"{name}: its published weights lack {printable(missing[0], 80)}")
    return encoder, {"size": size, "mean": list(images.mean), "std": list(images.std)}


def _timm(name: str, model: str, size: int | None) -> tuple[nn.Module, dict[str, Any]]:
    try:
        import timm
    except ImportError:
        raise ValueError(f"encoder {name} needs timm: pip install 'fastclr[timm]'") from None
    if not timm.is_model(model):
        timm_encoder(model, 224)  # raises: it knows the similar names
    try:
        published = timm.get_pretrained_cfg(model)
    except RuntimeError as error:
        raise ValueError(f"{name}: {one_line(error)}") from None
    if published is None or not published.has_weights:
        raise ValueError(f"{name}: timm publishes no weights of it; take another, or give a file of them")
    size = size or int(published.input_size[1])
    weights: dict[str, Any] = {"pretrained": True}
    if file := _cached(published.hf_hub_id):
        weights["pretrained_cfg_overlay"] = {"file": file}
    elif reason := _no_network(os.environ.get("HF_ENDPOINT", HUB)):
        # the hub's client would try again for a minute
        raise _unreachable(name, OSError(reason))
    try:
        encoder = timm_encoder(model, size, **weights)
    except OSError as error:
        raise _unreachable(name, error) from None
    return encoder, {"size": size, "mean": list(published.mean), "std": list(published.std)}


def _cached(repository: str | None) -> str | None:
    """Return the file of weights in the cache of the hub's client."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repository, WEIGHTS) if repository else None
    return found if isinstance(found, str) else None


def _no_network(url: str) -> str | None:
    """Return why a server can't be reached, if that is certain."""
    if urllib.request.getproxies():
        return None
    host = urlsplit(url).hostname
    try:
        socket.getaddrinfo(host, 443)
    except OSError as error:
        return f"{host}: {error.strerror}"
    return None


def _unreachable(name: str, error: Exception) -> ValueError:
    return ValueError(
        f"{name}: its weights are not in the cache and can't be downloaded ({printable(one_line(error), 160)}); give a "
        "file of them instead"
    )
