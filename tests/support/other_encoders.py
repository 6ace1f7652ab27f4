"""Checkpoints as other projects save them, of models with random weights, and what those models compute."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Features = Callable[[Tensor], Tensor]


def stir(model: nn.Module) -> nn.Module:
    """Give batch norms weights and statistics of their own: a tensor in the wrong place would show."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model.eval()


def torchvision_resnet(name: str = "resnet18", **options: Any) -> nn.Module:
    """A ResNet of torchvision whose classifier is the identity."""
    from torchvision import models

    model = models.get_model(name, weights=None, **options)
    model.fc = nn.Identity()
    return stir(model)


def with_prefix(prefix: str, model: nn.Module) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in model.state_dict().items()}


def flat_children(model: nn.Module) -> nn.Sequential:
    """What lightly's examples make of a ResNet: its children in a row, without the classifier."""
    return nn.Sequential(*list(model.children())[:-1])


# --- The model that the converter of the authors' checkpoints makes, written anew from its names and shapes ---


def conv(a: int, b: int, kernel: int = 3, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(a, b, kernel, stride, padding=(kernel - 1) // 2, bias=False)


def norm(channels: int, relu: bool = True) -> nn.Sequential:
    return nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU() if relu else nn.Identity())


class Selective(nn.Module):
    def __init__(self, channels: int, stride: int, ratio: float) -> None:
        super().__init__()
        middle = max(int(channels * ratio), 32)
        self.main_conv = nn.Sequential(conv(channels, 2 * channels, 3, stride), norm(2 * channels))
        self.mixing_conv = nn.Sequential(
            conv(channels, middle, 1), norm(middle), conv(middle, 2 * channels, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        both = torch.stack(self.main_conv(x).chunk(2, dim=1))
        mix = torch.stack(self.mixing_conv(both.sum(0).mean((2, 3), keepdim=True)).chunk(2, dim=1))
        return (both * mix.softmax(0)).sum(0)


class EdgePool(nn.Module):
    """TensorFlow's average of 2×2 pixels with "SAME" padding: the padding is not counted."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        ones = F.pad(torch.ones_like(x[:, :1]), (0, 1, 0, 1))
        total = F.avg_pool2d(F.pad(x, (0, 1, 0, 1)), 2, self.stride)
        return total / F.avg_pool2d(ones, 2, self.stride)


class Projection(nn.Module):
    def __init__(self, a: int, b: int, stride: int, ratio: float) -> None:
        super().__init__()
        if ratio:
            self.shortcut: nn.Module = nn.Sequential(nn.Identity(), EdgePool(stride), conv(a, b, 1))
        else:
            self.shortcut = conv(a, b, 1, stride)
        self.bn = norm(b, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.shortcut(x))


class Block(nn.Module):
    def __init__(self, a: int, channels: int, stride: int, ratio: float, first: bool, basic: bool) -> None:
        super().__init__()
        b = channels if basic else 4 * channels
        self.projection = Projection(a, b, stride, ratio) if first else nn.Identity()
        if basic:
            layers = [conv(a, b, 3, stride), norm(b), conv(b, b), norm(b, relu=False)]
        else:
            middle = (
                [Selective(channels, stride, ratio)]
                if ratio
                else [conv(channels, channels, 3, stride), norm(channels)]
            )
            layers = [
                conv(a, channels, 1),
                norm(channels),
                *middle,
                conv(channels, b, 1),
                norm(b, relu=False),
            ]
        self.net = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.projection(x) + self.net(x))


class Stage(nn.Module):
    def __init__(self, blocks: list[Block]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


class ConvertedSimCLR(nn.Module):
    def __init__(self, layers: list[int], width: int = 1, ratio: float = 0.0, basic: bool = False) -> None:
        super().__init__()
        channels = 64 * width
        half = channels // 2
        stem: list[nn.Module] = (
            [conv(3, half, 3, 2), norm(half), conv(half, half), norm(half), conv(half, channels)]
            if ratio
            else [conv(3, channels, 7, 2)]
        )
        parts: list[nn.Module] = [nn.Sequential(*stem, norm(channels), nn.MaxPool2d(3, 2, 1))]
        a = channels
        for stage, count in enumerate(layers):
            blocks = []
            for number in range(count):
                stride = 2 if stage and not number else 1
                blocks.append(Block(a, channels << stage, stride, ratio, not number, basic))
                a = (channels << stage) * (1 if basic else 4)
            parts.append(Stage(blocks))
        self.net = nn.Sequential(*parts)
        self.fc = nn.Linear(a, 1000)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).mean((2, 3))
