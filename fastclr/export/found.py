"""Builds the ResNet that a checkpoint holds: depth, width and stem follow from the shapes of its tensors."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from fastclr.export.layouts import locate, our_names
from fastclr.model.resnet import BASIC, BOTTLENECK, DEPTHS, ResNet, resnet, shortcut
from pipelines.system.terminal import printable

SHOWN = 6
"""Groups of dropped tensors that are named."""
PADDED = "stem padded by 2 pixels, as solo-learn pads it for CIFAR"
NO_RELU = "no ReLU after the stem, as lightly's ResNet in a row has none"
PROJECTED = "a projection in the first block of layer1, as the authors' ResNets have"


@dataclass(frozen=True, eq=False)
class FoundResNet:
    """A ResNet that a checkpoint holds."""

    encoder: ResNet
    """With the checkpoint's weights, in evaluation mode."""
    kwargs: dict[str, Any]
    """Arguments of `resnet`."""
    layout: str
    """See layouts.py."""
    prefix: str
    """What precedes the ResNet's own names; may be empty."""
    dropped: dict[str, int]
    """What else the checkpoint holds (heads, momentum encoders, queues …), and of how many tensors."""
    changes: tuple[str, ...]
    """In what the encoder differs from `resnet(**kwargs)`."""

    def __str__(self) -> str:
        """Return what was found and what was dropped, on one line."""
        kwargs = self.kwargs
        stem = {"imagenet": "7×7 stem", "cifar": "3×3 stem taken as stride 1 without max-pool"}[
            kwargs["stem"]
        ]
        if kwargs["sk_ratio"]:
            stem = f"selective kernels of ratio {kwargs['sk_ratio']:g}"
        where = f" under {printable(self.prefix.removesuffix('.'), 120)}" if self.prefix else ""
        made = ", ".join([f"ResNet-{kwargs['depth']} ×{kwargs['width']:g}", stem, *self.changes])
        groups = [
            f"{printable(name, 60)} ({count} tensor{'' if count == 1 else 's'})"
            for name, count in self.dropped.items()
        ]
        more = [f"{len(groups) - SHOWN} more"] if len(groups) > SHOWN else []
        return (
            f"{made}; found{where} in the layout {self.layout}; "
            f"dropped: {', '.join(groups[:SHOWN] + more) or 'nothing'}"
        )


class _ResNetInARow(ResNet):
    """lightly's ResNet as the children of an nn.Sequential: its first ReLU is a function, and is no child."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x))
        return self.layer4(self.layer3(self.layer2(self.layer1(x)))).mean((2, 3))


def find_resnet(tensors: Mapping[str, Tensor]) -> FoundResNet:
    """Find a checkpoint's ResNet and build it.

    Args:
        tensors: of the whole checkpoint, by name.

    Raises:
        ValueError: there is no ResNet, there are several, or the shapes are not those of one of ours.
    """
    prefix, layout = locate(tensors)
    inside = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
    names = dict(our_names(inside, layout))
    weights = {ours: inside[theirs] for theirs, ours in names.items()}
    used = {prefix + theirs for theirs in names}
    dropped = _groups((name for name in tensors if name not in used), prefix)
    kwargs = _arguments(weights)
    changes = []
    if kwargs["stem"] == "cifar" and _is_solo_learn(tensors, prefix):
        changes.append(PADDED)
    if layout == "sequential" and "2.0.conv1.weight" in names:
        changes.append(NO_RELU)
    if kwargs["depth"] < 50 and "layer1.0.downsample.0.weight" in weights:
        changes.append(PROJECTED)
    encoder = _build(weights, kwargs, changes)
    return FoundResNet(encoder, kwargs, layout, prefix, dropped, tuple(changes))


def _groups(names: Iterable[str], prefix: str) -> dict[str, int]:
    """Count names by the first part in which they differ from the prefix."""
    parts = prefix.split(".")[:-1]

    def group(name: str) -> str:
        own = name.split(".")
        common = 0
        while common < min(len(parts), len(own) - 1) and own[common] == parts[common]:
            common += 1
        return own[common]

    return dict(Counter(map(group, names)))


def _is_solo_learn(tensors: Mapping[str, Tensor], prefix: str) -> bool:
    """Whether an online classifier lies beside the backbone, which every checkpoint of solo-learn has."""
    parent, _, name = prefix.removesuffix(".").rpartition(".")
    above = f"{parent}." if parent else ""
    return name in ("backbone", "encoder") and f"{above}classifier.weight" in tensors


def _arguments(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the arguments of `resnet`."""
    stem = weights.get("conv1.0.weight", weights.get("conv1.weight"))
    assert stem is not None
    if stem.shape[1] != 3:
        raise ValueError(
            f"its stem is {list(stem.shape)}, and takes {stem.shape[1]} channels; it must take 3"
        )
    blocks = tuple(
        len({n.split(".")[1] for n in weights if n.startswith(f"layer{k}.")}) for k in (1, 2, 3, 4)
    )
    kind = BOTTLENECK if "layer1.0.conv3.weight" in weights else BASIC
    depth = next((depth for depth, shape in DEPTHS.items() if shape == (kind, blocks)), None)
    if depth is None:
        raise ValueError(
            f"its stages have {'/'.join(map(str, blocks))} {kind} blocks, as no ResNet of depth "
            f"{', '.join(map(str, DEPTHS))}"
        )
    channels = weights["layer1.0.conv1.weight"].shape[0]
    squeeze = weights.get("layer4.0.conv2.squeeze.weight")
    sk_ratio = 0.0 if squeeze is None else squeeze.shape[0] / (8 * channels)
    if "conv1.0.weight" in weights and not sk_ratio:
        raise ValueError(
            "its stem has three convolutions (ResNet-D), which our ResNets have with selective kernels only"
        )
    kernel = stem.shape[-1]
    if not sk_ratio and kernel not in (3, 7):
        raise ValueError(f"its stem is a {kernel}×{kernel} convolution; known are 7×7 and 3×3")
    return {
        "depth": depth,
        "width": channels / 64,
        "stem": "imagenet" if sk_ratio or kernel == 7 else "cifar",
        "sk_ratio": sk_ratio,
    }


def _build(weights: Mapping[str, Tensor], kwargs: Mapping[str, Any], changes: Iterable[str]) -> ResNet:
    with torch.device("meta"):
        encoder = resnet(**kwargs)
        if PROJECTED in changes:
            channels = int(64 * kwargs["width"])
            cast(nn.Sequential, encoder.layer1)[0].downsample = shortcut(channels, channels, 1)
    if PADDED in changes:
        assert isinstance(encoder.conv1, nn.Conv2d)
        encoder.conv1.padding = (2, 2)
    if NO_RELU in changes:
        encoder.__class__ = _ResNetInARow
    expected, state = encoder.state_dict(), {}
    for name, tensor in expected.items():
        found = weights.get(name)
        if found is None and name.endswith("num_batches_tracked"):
            # older versions of torch did not save it; evaluation does not use it
            found = torch.zeros((), dtype=torch.int64)
        if found is None:
            raise ValueError(f"{name} is missing, which a ResNet-{kwargs['depth']} has")
        if found.shape != tensor.shape:
            raise ValueError(
                f"{name} is {list(found.shape)}; a ResNet-{kwargs['depth']} of width {kwargs['width']:g} has "
                f"{list(tensor.shape)} there"
            )
        state[name] = found.to(tensor.dtype)
    if unknown := [name for name in weights if name not in expected]:
        raise ValueError(
            f"{printable(unknown[0], 80)} is no part of a ResNet-{kwargs['depth']} as we have it"
        )
    encoder.load_state_dict(state, assign=True)
    return encoder.eval()
