"""Where in a checkpoint a ResNet is, and which of our names its tensors have.

A layout is how a project names the layers of a ResNet:

    torchvision   conv1, bn1, layer1.0.conv1 …    also timm, solo-learn, VISSL, MMSelfSup, MoCo, fastclr; the 1×1
                                                  projection beside a block is `downsample`, or `shortcut` (lightly)
    sequential    0, 1, 4.0.conv1 …               the children of such a ResNet in an nn.Sequential, as lightly has them
    simclr        net.1.blocks.0.net.0 …          the authors' TensorFlow checkpoints of SimCLR v2, as converted by
                                                  github.com/Separius/SimCLRv2-Pytorch
"""

import re
from collections.abc import Iterable, Iterator, Mapping

from torch import Tensor

from pipelines.system.terminal import printable

COPY = re.compile(r"(^|[._])(momentum|ema|teacher|target|averaged|key|k)($|[._])")
"""In a prefix: a slowly moving copy of the encoder, which is not the one that is meant where there is another."""

_STEMS = {
    "torchvision": re.compile(r"(.*\.|)conv1(\.0)?\.weight"),
    "sequential": re.compile(r"(.*\.|)0\.weight"),
    "simclr": re.compile(r"(.*\.|)net\.0\.0(\.0)?\.weight"),
}
_FIRST_BLOCKS = {
    "torchvision": re.compile(r"layer1\.0\.conv1\.weight"),
    "sequential": re.compile(r"\d+\.0\.conv1\.weight"),
    "simclr": re.compile(r"net\.1\.blocks\.0\.net\.0(\.0)?\.weight"),
}
"""By layout: the names that it has after the prefix."""

_PLAIN = {
    "stem": {"0": "conv1", "1.0": "bn1"},
    "block": {"0": "conv1", "1.0": "bn1", "2": "conv2", "3.0": "bn2", "4": "conv3", "5.0": "bn3"},
    "projection": {"shortcut": "downsample.0", "bn.0": "downsample.1"},
}
_SELECTIVE = {
    "stem": {
        "0": "conv1.0",
        "1.0": "conv1.1",
        "2": "conv1.3",
        "3.0": "conv1.4",
        "4": "conv1.6",
        "5.0": "bn1",
    },
    "block": {
        "0": "conv1",
        "1.0": "bn1",
        "3": "conv3",
        "4.0": "bn3",
        "2.main_conv.0": "conv2.streams",
        "2.main_conv.1.0": "conv2.bn",
        "2.mixing_conv.0": "conv2.squeeze",
        "2.mixing_conv.1.0": "conv2.squeeze_bn",
        "2.mixing_conv.2": "conv2.mix",
    },
    "projection": {"shortcut.2": "downsample.1", "bn.0": "downsample.2"},
}
"""Of the layout simclr, without and with selective kernels: its names in stem, block and projection, and ours."""


def locate(tensors: Mapping[str, Tensor]) -> tuple[str, str]:
    """Return prefix and layout of the ResNet that a checkpoint holds.

    Raises:
        ValueError: there is none, or there are several.
    """
    found: dict[str, str] = {}
    for layout, stem in _STEMS.items():
        prefixes = {
            match[1] for name, t in tensors.items() if t.ndim == 4 and (match := stem.fullmatch(name))
        }
        block = _FIRST_BLOCKS[layout]
        for prefix in prefixes:
            if any(name.startswith(prefix) and block.fullmatch(name, len(prefix)) for name in tensors):
                found[prefix] = layout
    if not found:
        shown = ", ".join(printable(name, 60) for name in list(tensors)[:3])
        raise ValueError(
            f"none of its {len(tensors)} tensors ({shown} …) has the name of a ResNet's layer; known are the names of "
            "torchvision, timm, lightly, solo-learn, VISSL, MMSelfSup and converted SimCLR checkpoints"
        )
    meant = [prefix for prefix in found if not COPY.search(prefix)] or list(found)
    if len(meant) > 1:
        shown = " and ".join(printable(prefix or "the top", 80) for prefix in sorted(meant)[:3])
        raise ValueError(
            f"it holds {len(meant)} encoders, under {shown}; save the state_dict of the one that is meant"
        )
    return meant[0], found[meant[0]]


def our_names(inside: Iterable[str], layout: str) -> Iterator[tuple[str, str]]:
    """Yield the name of each tensor of the encoder without the prefix, and our name of it.

    >>> list(our_names(["0.weight", "4.0.conv1.weight", "8.weight"], "sequential"))
    [('0.weight', 'conv1.weight'), ('4.0.conv1.weight', 'layer1.0.conv1.weight')]
    """
    inside = list(inside)
    numbers = sorted({int(match[1]) for name in inside if (match := re.match(r"(\d+)\.0\.conv1\.", name))})
    modules = {"0": "conv1", "1": "bn1", **{f"{n}": f"layer{k}" for k, n in enumerate(numbers, 1)}}
    selective = any(".main_conv." in name for name in inside)
    for theirs in inside:
        ours = theirs
        if layout == "simclr":
            ours = _from_simclr(theirs, _SELECTIVE if selective else _PLAIN)
        elif layout == "sequential":
            number, _, rest = theirs.partition(".")
            ours = f"{modules[number]}.{rest}" if number in modules else ""
        if re.match(r"(conv1|bn1|layer\d+)\.", ours):
            yield theirs, re.sub(r"^(layer\d+\.\d+)\.shortcut\.", r"\1.downsample.", ours)


def _from_simclr(theirs: str, names: Mapping[str, Mapping[str, str]]) -> str:
    """Return our name, or theirs where we have none."""
    layer, _, tensor = theirs.rpartition(".")
    if match := re.fullmatch(r"net\.([1-9])\.blocks\.(\d+)\.(net|projection)\.(.+)", layer):
        table, where, key = (
            names["block" if match[3] == "net" else "projection"],
            f"layer{match[1]}.{match[2]}.",
            match[4],
        )
    elif match := re.fullmatch(r"net\.0\.(.+)", layer):
        table, where, key = names["stem"], "", match[1]
    else:
        return theirs
    # some versions of the converter have each convolution in a Sequential
    ours = table.get(key) or table.get(key.removesuffix(".0"))
    return theirs if ours is None else f"{where}{ours}.{tensor}"
