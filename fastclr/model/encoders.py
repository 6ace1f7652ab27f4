"""Encoders by name: our ResNets, and any model of torchvision or timm without its classifier.

    resnet              depth, width, stem, sk_ratio, stages: `fastclr.model.resnet`
    torchvision:NAME    torchvision.models, for example torchvision:convnext_tiny
    timm:NAME           timm, for example timm:vit_small_patch16_224; needs `pip install 'fastclr[timm]'`

Each has fresh weights from torch's generator, maps images [B, 3, H, W] to h [B, encoder.num_features], and can be
rebuilt from its name and arguments, which checkpoints and exported encoders hold.
"""

import difflib
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import nn

from fastclr.model.resnet import resnet
from pipelines.system.terminal import one_line

PLACEHOLDER_CLASSES = 4093
"""Number of classes of a classifier that is about to be removed: no other layer has as many outputs."""


def make_encoder(name: str, **kwargs: Any) -> nn.Module:
    """Make an encoder with fresh weights; its `num_features` is the dimension of h.

    Args:
        name: a key of ENCODERS; for torchvision and timm followed by ":" and the name of the model.
        kwargs: the arguments of `resnet`; for the others `size`, the side of an image in pixels.

    Raises:
        ValueError: no such encoder, a missing package, or a model that takes no images of this size.

    >>> make_encoder("torchvision:resnet18", size=32).num_features
    512
    """
    family, _, model = name.partition(":")
    check_encoder_name(name)
    if family == "resnet":
        return resnet(**kwargs)
    return ENCODERS[family](model, **kwargs)


def check_encoder_name(name: str) -> None:
    """Raise a ValueError if the name is not of the form that `make_encoder` takes."""
    family, colon, model = name.partition(":")
    if family not in ENCODERS or (family == "resnet") == bool(colon) or (colon and not model):
        raise ValueError(f"encoder {name!r} is unknown; there are resnet, torchvision:NAME and timm:NAME")


def torchvision_encoder(name: str, size: int) -> nn.Module:
    """Make a model of torchvision.models without its last linear layer.

    Raises:
        ValueError: there is no such model, it does not end in a linear layer, or takes no images of this size.
    """
    from torchvision import models

    # not the segmentation, detection and video models of its sub-packages
    known = models.list_models(models)
    if name not in known:
        raise ValueError(f"torchvision has no classifier {name!r}{_nearest(name, known)}")
    sizes = {"image_size": size} if name.startswith("vit_") else {}
    try:
        encoder = models.get_model(name, weights=None, num_classes=PLACEHOLDER_CLASSES, **sizes)
    except (AssertionError, ValueError) as error:
        raise _no_such_size(f"torchvision:{name}", size, error) from None
    classifiers = [
        (parent, child)
        for parent in encoder.modules()
        for child, module in parent.named_children()
        if isinstance(module, nn.Linear) and module.out_features == PLACEHOLDER_CLASSES
    ]
    if len(classifiers) != 1:
        raise ValueError(f"torchvision:{name} does not end in one linear layer; take another model")
    parent, child = classifiers[0]
    setattr(parent, child, nn.Identity())
    return _with_num_features(encoder, f"torchvision:{name}", size)


def timm_encoder(name: str, size: int, **weights: Any) -> nn.Module:
    """Make a model of timm without its classifier; a transformer gets position embeddings for this size.

    Args:
        name: the model, with or without a tag of its weights.
        size: side of an image in pixels.
        weights: arguments of `timm.create_model` that say which weights it loads; none: fresh ones.

    Raises:
        ValueError: timm is not installed, has no such model, or the model takes no images of this size.
    """
    try:
        import timm
    except ImportError:
        raise ValueError(f"encoder timm:{name} needs timm: pip install 'fastclr[timm]'") from None
    # only names of its own models: timm would also load "hf-hub:…" and "local-dir:…"
    if not timm.is_model(name):
        raise ValueError(f"timm has no model {name!r}{_nearest(name, timm.list_models())}")
    state, create = torch.get_rng_state(), partial(timm.create_model, name, num_classes=0, **weights)
    try:
        encoder = create(img_size=size)
    except TypeError:
        # convolutional networks take any size and no such argument; the failed attempt may have drawn numbers
        torch.set_rng_state(state)
        encoder = create()
    except (AssertionError, ValueError, RuntimeError) as error:
        raise _no_such_size(f"timm:{name}", size, error) from None
    return _with_num_features(encoder, f"timm:{name}", size)


ENCODERS: dict[str, Callable[..., nn.Module]] = {
    "resnet": resnet,
    "torchvision": torchvision_encoder,
    "timm": timm_encoder,
}
"""Makers of encoders by the first part of their names."""


def _with_num_features(encoder: nn.Module, name: str, size: int) -> nn.Module:
    """Set `num_features` by encoding two images, in evaluation mode so that no random numbers are drawn."""
    encoder.eval()
    try:
        with torch.no_grad():
            h = encoder(torch.zeros(2, 3, size, size))
    except (AssertionError, ValueError, RuntimeError) as error:
        raise _no_such_size(name, size, error) from None
    finally:
        encoder.train()
    if not isinstance(h, torch.Tensor) or h.ndim != 2:
        raise ValueError(f"encoder {name} does not map images to vectors; take another model")
    encoder.num_features = h.shape[1]  # type: ignore[assignment]
    return encoder


def check_image_size(encoder: nn.Module, name: str, size: int) -> None:
    """Raise a ValueError unless the encoder takes images of this size; leaves it as it is.

    Args:
        encoder: an encoder of `make_encoder`, on any device.
        name: its name, for the message.
        size: height and width in pixels.
    """
    training, first = encoder.training, next(encoder.parameters())
    encoder.eval()
    try:
        with torch.no_grad():
            encoder(torch.zeros(2, 3, size, size, dtype=first.dtype, device=first.device))
    except (AssertionError, ValueError, RuntimeError) as error:
        raise _no_such_size(name, size, error) from None
    finally:
        encoder.train(training)


def _no_such_size(name: str, size: int, error: Exception) -> ValueError:
    reason = one_line(error)[:200]
    return ValueError(f"encoder {name} takes no images of {size} px ({reason}); set another size")


def _nearest(name: str, known: Iterable[str]) -> str:
    known = list(known)
    longer = [other for other in known if other.startswith(name)][:3]
    near = longer or difflib.get_close_matches(name[:100], known, n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(near)}?" if near else ""
