import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastclr.model import resnet
from fastclr.model.selective_kernel import SelectiveKernel, shortcut_d


@pytest.mark.parametrize(("size", "stride"), [(6, 1), (6, 2), (7, 2)])  # an odd size under the stride
def test_selective_kernel_written_out(size: int, stride: int) -> None:
    torch.manual_seed(0)
    layer = SelectiveKernel(4, stride, ratio=0.0625).double().eval()
    layer.bn.running_mean.uniform_(-0.1, 0.1)
    layer.squeeze_bn.running_var.uniform_(0.5, 2)
    x = torch.randn(2, 4, size, size, dtype=torch.float64)

    def norm(y: torch.Tensor, bn: nn.BatchNorm2d) -> torch.Tensor:
        shape = (1, -1, 1, 1)
        y = (y - bn.running_mean.view(shape)) / (bn.running_var.view(shape) + bn.eps).sqrt()
        return (y * bn.weight.view(shape) + bn.bias.view(shape)).clamp_min(0)

    both = norm(F.conv2d(x, layer.streams.weight, stride=stride, padding=1), layer.bn)
    streams = both[:, :4], both[:, 4:]
    whole = (streams[0] + streams[1]).mean((2, 3), keepdim=True)
    assert layer.squeeze.weight.shape == (32, 4, 1, 1)  # never less than 32
    middle = norm(F.conv2d(whole, layer.squeeze.weight), layer.squeeze_bn)
    logits = F.conv2d(middle, layer.mix.weight)
    for channel in range(4):
        e = logits[:, [channel, channel + 4], 0, 0].exp()
        shares = e / e.sum(1, keepdim=True)
        want = sum(shares[:, k, None, None] * streams[k][:, channel] for k in range(2))
        torch.testing.assert_close(layer(x)[:, channel], want)
    assert layer(x).shape[-1] == -(-size // stride)


def test_middle_width_follows_the_ratio() -> None:
    assert SelectiveKernel(1024, 1, ratio=0.0625).squeeze.out_channels == 64


@pytest.mark.parametrize("stride", [1, 2])
def test_shortcut_is_the_mean_of_the_pixels_that_are_there(stride: int) -> None:
    pool = shortcut_d(1, 1, stride)[0]
    x = torch.arange(16.0).view(1, 1, 4, 4)
    got = pool(x)[0, 0]
    assert got.shape == (4 // stride, 4 // stride)
    for i in range(4 // stride):
        for j in range(4 // stride):
            patch = x[0, 0, i * stride : i * stride + 2, j * stride : j * stride + 2]  # smaller at the edge
            assert float(got[i, j]) == float(patch.mean())


@pytest.mark.parametrize(("image_size", "map_size"), [(64, 2), (32, 4)])
def test_encoder_with_selective_kernels(image_size: int, map_size: int) -> None:
    torch.manual_seed(0)
    encoder = resnet(50, width=0.25, image_size=image_size, sk_ratio=0.0625)
    maps = []
    encoder.layer4.register_forward_hook(lambda module, args, out: maps.append(out.shape))
    x = torch.randn(2, 3, image_size, image_size).to(memory_format=torch.channels_last)
    h = encoder.to(memory_format=torch.channels_last)(x)
    assert h.shape == (2, 512)
    assert maps == [(2, 512, map_size, map_size)]
    for block in (m for m in encoder.modules() if hasattr(m, "last_bn")):
        nn.init.ones_(block.last_bn.weight)  # until then nothing passes through the blocks
    encoder(x).square().sum().backward()
    for name, p in encoder.named_parameters():
        assert p.grad is not None, name
        assert p.grad.abs().sum() > 0, name
