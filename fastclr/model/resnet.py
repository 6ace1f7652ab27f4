"""ResNet encoders of the usual depths and any width, for photos and for CIFAR.

He et al. 2015 (arXiv 1512.03385), in the v1.5 form (the stride sits in the 3×3 convolution), with torchvision's
module names, so that weights move to and from torchvision.
"""

import math
import warnings
from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from fastclr.model.selective_kernel import SelectiveKernel, shortcut_d, stem_d

BASIC, BOTTLENECK = "basic", "bottleneck"

DEPTHS: dict[int, tuple[str, tuple[int, int, int, int]]] = {
    10: (BASIC, (1, 1, 1, 1)),  # for CPUs
    18: (BASIC, (2, 2, 2, 2)),
    34: (BASIC, (3, 4, 6, 3)),
    50: (BOTTLENECK, (3, 4, 6, 3)),
    101: (BOTTLENECK, (3, 4, 23, 3)),
    152: (BOTTLENECK, (3, 8, 36, 3)),
}
"""Depth → kind of block, and number of blocks in each of the four stages."""

STEMS = ("auto", "imagenet", "cifar", "stride2", "whitened")


def resnet(
    depth: int = 50,
    width: float = 1.0,
    image_size: int = 224,
    stem: str = "auto",
    sk_ratio: float = 0.0,
    stages: int = 4,
) -> "ResNet":
    """Make an encoder without classifier: images [B, 3, H, W] → h [B, encoder.num_features].

    Args:
        depth: 10, 18, 34, 50, 101 or 152.
        width: factor on all channel counts: 1, 2, 4 in the paper, fractions (0.25, 0.5) for CPUs.
        image_size: side of an image in pixels; for stem "auto", 32 or less means "cifar", more means "imagenet".
        stem: "imagenet" (7×7 stride 2, then max-pool), "cifar" (3×3 stride 1, no pool), "stride2" (3×3 stride 2,
            no pool: small images on CPUs), "whitened" (4×4 stride 2, no pool, frozen: `whiten` sets its weights), or
            "auto".
        sk_ratio: 0, or the ratio of SimCLR v2's selective kernels, 0.0625 there; depth 50 or more.
        stages: 4; or 3, which leaves out the last stage, for small images: at 24 pixels with stem "stride2" its maps
            are 2×2, so most of what its 3×3 kernels see is padding.  He et al.'s own CIFAR networks have three (section
            4.2), and so have those of the CIFAR-10 speedruns (arXiv 2404.00498).

    Raises:
        ValueError: an unknown depth, stem or number of stages, or a width or ratio out of range.

    >>> import torch
    >>> encoder = resnet(18, width=0.5, image_size=32)
    >>> encoder(torch.zeros(2, 3, 32, 32)).shape, encoder.num_features
    (torch.Size([2, 256]), 256)
    """
    if depth not in DEPTHS:
        raise ValueError(f"there is no ResNet of depth {depth}; there are {', '.join(map(str, DEPTHS))}")
    if stem not in STEMS:
        raise ValueError(f"stem {stem!r} is unknown; there are {', '.join(STEMS)}")
    if width <= 0 or (32 * width) % 1:
        raise ValueError(f"width is {width}; it must be a multiple of 1/32, so that channel counts are even")
    channels = int(64 * width)
    kind, blocks = DEPTHS[depth]
    if sk_ratio and kind != BOTTLENECK:
        raise ValueError(f"selective kernels need a depth of 50 or more, and this is {depth}; set sk_ratio=0")
    if not 0 <= sk_ratio <= 1:
        raise ValueError(f"sk_ratio is {sk_ratio}; it must be 0 (none) to 1, 0.0625 in SimCLR v2")
    if stages not in (3, 4):
        raise ValueError(f"stages is {stages}; a ResNet has 4, or 3 for small images")
    if stem == "auto":
        stem = "cifar" if image_size <= 32 else "imagenet"
    return ResNet(kind, blocks[:stages], channels, stem, sk_ratio)


class ResNet(nn.Module):
    """The encoder that `resnet` makes.

    Initialisation is the authors' (google-research/simclr, resnet.py): convolutions from a normal truncated at two
    standard deviations, of variance 1/fan_in *after* truncation (TensorFlow's variance scaling, its defaults); batch
    norms 1 and 0, but 0 for the last gamma of each block, so that every block starts as its shortcut.
    """

    def __init__(self, kind: str, blocks: tuple[int, ...], channels: int, stem: str, sk_ratio: float) -> None:
        super().__init__()
        self.stem = stem
        if stem == "cifar":
            self.conv1: nn.Module = convolution(3, channels, 3)
        elif stem == "stride2":
            self.conv1 = convolution(3, channels, 3, stride=2)
        elif stem == "whitened":
            self.conv1 = nn.Conv2d(3, channels, 4, stride=2, padding=1, bias=False).requires_grad_(False)
        elif sk_ratio:
            self.conv1 = stem_d(channels)
        else:
            self.conv1 = convolution(3, channels, 7, stride=2)
        self.bn1 = nn.BatchNorm2d(channels)

        block = Bottleneck if kind == BOTTLENECK else BasicBlock
        stages: list[nn.Module] = []
        in_channels = channels
        for stage, num_blocks in enumerate(blocks):
            stage_channels, stride = channels << stage, 1 if stage == 0 else 2
            layers: list[nn.Module] = []
            for _ in range(num_blocks):
                layers.append(block(in_channels, stage_channels, stride, sk_ratio))
                in_channels, stride = stage_channels * block.expansion, 1
            stages.append(nn.Sequential(*layers))
        # a stage that is left out has no weights, and the others keep torchvision's names
        stages += [nn.Identity()] * (4 - len(blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.num_features = in_channels
        """Width of h."""
        self._initialise()

    @property
    def feature_width(self) -> int:
        """The name of `num_features` in fastclr 0.1."""
        warnings.warn("ResNet.feature_width is now num_features", DeprecationWarning, stacklevel=2)
        return self.num_features

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        if self.stem == "imagenet":
            x = F.max_pool2d(x, 3, stride=2, padding=1)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return x.mean((2, 3))

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_in = module.in_channels * math.prod(module.kernel_size)
                # a unit normal cut at ±2 has the standard deviation 0.8796
                std = fan_in**-0.5 / 0.87962566103423978
                nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
        for module in self.modules():
            if isinstance(module, (BasicBlock, Bottleneck)):
                nn.init.zeros_(module.last_bn.weight)


class BasicBlock(nn.Module):
    """Two 3×3 convolutions beside a shortcut: depths 10, 18, 34."""

    expansion = 1

    def __init__(self, in_channels: int, channels: int, stride: int, sk_ratio: float) -> None:
        super().__init__()
        assert not sk_ratio
        self.conv1 = convolution(in_channels, channels, 3, stride)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = convolution(channels, channels, 3)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = _downsample(in_channels, channels, stride, shortcut)

    @property
    def last_bn(self) -> nn.BatchNorm2d:
        return self.bn2

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = self.bn2(self.conv2(out))
        out += x if self.downsample is None else self.downsample(x)
        return F.relu(out, inplace=True)


class Bottleneck(nn.Module):
    """1×1, 3×3 (with the stride), 1×1 convolutions beside a shortcut: depths 50, 101, 152."""

    expansion = 4

    def __init__(self, in_channels: int, channels: int, stride: int, sk_ratio: float) -> None:
        super().__init__()
        out_channels = channels * self.expansion
        self.conv1 = convolution(in_channels, channels, 1)
        self.bn1 = nn.BatchNorm2d(channels)
        if sk_ratio:
            self.conv2: nn.Module = SelectiveKernel(channels, stride, sk_ratio)
            self.bn2: nn.Module = nn.Identity()  # it has its own
        else:
            self.conv2 = convolution(channels, channels, 3, stride)
            self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = convolution(channels, out_channels, 1)
        self.bn3 = nn.BatchNorm2d(out_channels)
        make = shortcut_d if sk_ratio else shortcut
        self.downsample = _downsample(in_channels, out_channels, stride, make)

    @property
    def last_bn(self) -> nn.BatchNorm2d:
        return self.bn3

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = F.relu(self.bn2(self.conv2(out)), inplace=True)
        out = self.bn3(self.conv3(out))
        out += x if self.downsample is None else self.downsample(x)
        return F.relu(out, inplace=True)


def convolution(in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """Make a convolution without bias (a batch norm follows) that keeps the size, divided by its stride."""
    return nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=False)


def shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    """Make the 1×1 projection beside a block that changes the shape."""
    return nn.Sequential(convolution(in_channels, out_channels, 1, stride), nn.BatchNorm2d(out_channels))


def _downsample(
    in_channels: int, out_channels: int, stride: int, make: Callable[[int, int, int], nn.Sequential]
) -> nn.Sequential | None:
    same_shape = stride == 1 and in_channels == out_channels
    return None if same_shape else make(in_channels, out_channels, stride)
