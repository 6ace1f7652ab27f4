"""Selective kernels, and the ResNet-D stem and shortcut that come with them: the encoder of SimCLR v2.

Li et al. 2019 (arXiv 1903.06586) and He et al. 2018 (arXiv 1812.01187), as Chen et al. 2020 (arXiv 2006.10029)
put them together: both streams of a selective kernel are 3×3.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MIN_MIDDLE = 32


class SelectiveKernel(nn.Module):
    """Two 3×3 streams, mixed channel by channel with weights that depend on the whole image.

        a, b = relu(bn(conv(x)))                                 two halves of the channels
        m_a, m_b = softmax over the two of W₂ relu(bn(W₁ mean_hw(a + b)))
        out = m_a·a + m_b·b                                      not negative

    Args:
        channels: channels of input and output.
        stride: stride of both streams.
        ratio: hidden units of the mixing network, as a fraction of `channels`; there are at least 32.
    """

    def __init__(self, channels: int, stride: int, ratio: float) -> None:
        super().__init__()
        middle = max(int(channels * ratio), MIN_MIDDLE)
        self.streams = nn.Conv2d(channels, 2 * channels, 3, stride, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(2 * channels)
        self.squeeze = nn.Conv2d(channels, middle, 1, bias=False)
        self.squeeze_bn = nn.BatchNorm2d(middle)
        self.mix = nn.Conv2d(middle, 2 * channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        a, b = F.relu(self.bn(self.streams(x)), inplace=True).chunk(2, dim=1)
        whole = (a + b).mean((2, 3), keepdim=True)
        mix = self.mix(F.relu(self.squeeze_bn(self.squeeze(whole)), inplace=True))
        m_a, m_b = torch.stack(mix.chunk(2, dim=1)).softmax(0)
        return a * m_a + b * m_b


class _AveragePool(nn.Module):
    """2×2 mean at any stride; the last pixel is repeated beyond the right and lower edges."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(F.pad(x, (0, 1, 0, 1), mode="replicate"), 2, self.stride)


def shortcut_d(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    """Make ResNet-D's projection, which averages all pixels; a strided 1×1 convolution would drop three of four."""
    return nn.Sequential(
        _AveragePool(stride),
        nn.Conv2d(in_channels, out_channels, 1, bias=False),
        nn.BatchNorm2d(out_channels),
    )


def stem_d(channels: int) -> nn.Sequential:
    """Make ResNet-D's stem: three 3×3 convolutions, the first with stride 2, instead of one 7×7."""
    half = channels // 2
    return nn.Sequential(
        nn.Conv2d(3, half, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(half),
        nn.ReLU(inplace=True),
        nn.Conv2d(half, half, 3, padding=1, bias=False),
        nn.BatchNorm2d(half),
        nn.ReLU(inplace=True),
        nn.Conv2d(half, channels, 3, padding=1, bias=False),
    )
