"""ResNets against torchvision's, with the same weights; and what torchvision's don't have."""

import math

import pytest
import torch
import torchvision
from torch import Tensor, nn

from fastclr.model import ResNet, resnet


def torchvision_like(ours: ResNet, depth: int) -> nn.Module:
    """torchvision's ResNet without classifier, in double, with our weights."""
    theirs = getattr(torchvision.models, f"resnet{depth}")()
    theirs.fc = nn.Identity()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    return theirs.double()


def shuffle_norms(model: nn.Module) -> None:
    """Batch norms that do something: scales, shifts and statistics all different, no gamma of zero."""
    torch.manual_seed(0)
    for tensor in model.state_dict().values():
        if tensor.ndim == 1:
            tensor.uniform_(0.5, 1.5)


def images(size: int, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


# 65 px: every stride meets an odd size
@pytest.mark.slow
@pytest.mark.parametrize(("depth", "size"), [(18, 65), (34, 64), (50, 65)])
def test_equals_torchvision_with_the_same_weights(depth: int, size: int) -> None:
    ours = resnet(depth)
    shuffle_norms(ours)
    theirs = torchvision_like(ours, depth)
    ours.double()
    for train in (True, False):
        x, y = images(size).requires_grad_(), images(size).requires_grad_()
        got, want = ours.train(train)(x), theirs.train(train)(y)
        assert got.shape == (2, ours.num_features)
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)
        got.square().sum().backward()
        want.square().sum().backward()
        torch.testing.assert_close(x.grad, y.grad, rtol=1e-7, atol=1e-9)
    # running statistics moved alike too
    for (name, a), (_, b) in zip(ours.state_dict().items(), theirs.state_dict().items(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.parametrize("depth", [18, 34, 50, 101, 152])
def test_names_and_shapes_are_torchvisions(depth: int) -> None:
    with torch.device("meta"):
        ours = resnet(depth).state_dict()
        theirs = getattr(torchvision.models, f"resnet{depth}")().state_dict()
    want = {name: t.shape for name, t in theirs.items() if not name.startswith("fc.")}
    assert {name: t.shape for name, t in ours.items()} == want
    assert list(ours) == list(want)


def num_parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.slow
def test_numbers_of_parameters() -> None:
    """Exact for torchvision's sizes; in millions as SimCLR v2's table 1 has them for the rest."""
    with torch.device("meta"):
        assert num_parameters(resnet(50)) == 25_557_032 - 2_049_000  # torchvision's, less its classifier
        assert num_parameters(resnet(18)) == 11_689_512 - 513_000
        table = {
            (50, 1, 0.0): 24, (50, 1, 0.0625): 35, (50, 2, 0.0): 94, (50, 2, 0.0625): 140,
            (101, 1, 0.0): 43, (101, 1, 0.0625): 65, (101, 2, 0.0): 170, (101, 2, 0.0625): 257,
            (152, 1, 0.0): 58, (152, 1, 0.0625): 89, (152, 2, 0.0): 233, (152, 2, 0.0625): 354,
            (50, 4, 0.0): 375,
        }  # fmt: skip
        for (depth, width, sk_ratio), millions in table.items():
            count = num_parameters(resnet(depth, width, sk_ratio=sk_ratio)) / 1e6
            assert count == pytest.approx(millions, abs=0.9), (depth, width, sk_ratio)


@pytest.mark.parametrize("width", [0.25, 0.5, 1, 2])
def test_width_scales_every_layer(width: float) -> None:
    with torch.device("meta"):
        narrow, plain = resnet(10, width).state_dict(), resnet(10).state_dict()
    for name, tensor in narrow.items():
        scaled = [round(width * n) if n >= 64 else n for n in plain[name].shape]
        assert list(tensor.shape) == scaled, name
    assert resnet(10, width).num_features == 512 * width


@pytest.mark.parametrize(("stem", "size"), [("auto", 32), ("stride2", 16)])
def test_stems_of_small_images(stem, size) -> None:
    small = resnet(18, image_size=32, stem=stem)
    seen = {}
    for name in ("conv1", "layer1", "layer4"):
        small.get_submodule(name).register_forward_hook(
            lambda module, args, out, name=name: seen.update({name: tuple(out.shape[1:])})
        )
    assert small(torch.zeros(1, 3, 32, 32)).shape == (1, 512)
    assert seen == {
        "conv1": (64, size, size),
        "layer1": (64, size, size),
        "layer4": (512, size // 8, size // 8),
    }
    assert small.conv1.weight.shape == (64, 3, 3, 3)


def test_the_stem_of_auto() -> None:
    assert resnet(18, image_size=32).stem == "cifar"
    assert resnet(18, image_size=33).stem == "imagenet"
    assert resnet(18, image_size=96, stem="cifar").stem == "cifar"
    assert resnet(18, image_size=32, stem="imagenet").conv1.weight.shape == (64, 3, 7, 7)


def test_initialisation_is_the_authors() -> None:
    torch.manual_seed(0)
    encoder = resnet(50, width=0.5)
    num_zero = 0
    for name, module in encoder.named_modules():
        if isinstance(module, nn.Conv2d):
            weight, fan_in = module.weight.detach(), module.weight[0].numel()
            cut = 2 * fan_in**-0.5 / 0.8796256610342398
            assert float(weight.abs().max()) <= cut * (1 + 1e-6), name
            assert float(weight.abs().max()) > 0.9 * cut, name
            # the deviation of n draws is off by 1/√(2n); five of those
            error = 5 / math.sqrt(2 * weight.numel())
            assert float(weight.std()) == pytest.approx(fan_in**-0.5, rel=error), name
        elif isinstance(module, nn.BatchNorm2d):
            last = name.endswith(".bn3")
            num_zero += last
            assert torch.equal(module.weight, torch.full_like(module.weight, 0.0 if last else 1.0)), name
            assert not module.bias.any(), name
            assert (module.eps, module.momentum) == (1e-5, 0.1)
    assert num_zero == 16


@pytest.mark.parametrize("depth", [10, 50])
def test_blocks_begin_as_their_shortcut(depth: int) -> None:
    torch.manual_seed(0)
    encoder = resnet(depth, width=0.25, image_size=32)
    x = torch.rand(2, encoder.layer1[0].conv1.in_channels, 8, 8)
    block = encoder.layer1[0]
    shortcut = x if block.downsample is None else block.downsample(x)
    torch.testing.assert_close(block(x), shortcut.relu())


def test_channels_last_and_autocast_give_the_same_features() -> None:
    torch.manual_seed(0)
    encoder = resnet(10, width=0.25, image_size=32)
    x = images(32, batch=4).float()
    want = encoder(x)
    last = encoder.to(memory_format=torch.channels_last)(x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(last, want, rtol=1e-4, atol=1e-5)

    seen = []
    encoder.layer3.register_forward_hook(lambda module, args, out: seen.append(out))
    with torch.autocast("cpu", torch.bfloat16):
        half = encoder(x.contiguous(memory_format=torch.channels_last))
    assert seen[0].dtype == torch.bfloat16
    assert seen[0].is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(half.float(), want, rtol=0.1, atol=0.05)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depth": 20}, "there is no ResNet of depth 20; there are 10, 18, 34, 50, 101, 152"),
        ({"width": 0.0}, "width is 0.0; it must be a multiple of 1/32"),
        ({"width": 0.4}, "width is 0.4; it must be a multiple of 1/32"),
        ({"stem": "stl"}, "stem 'stl' is unknown; there are auto, imagenet, cifar, stride2"),
        ({"depth": 18, "sk_ratio": 0.0625}, "selective kernels need a depth of 50 or more"),
        ({"sk_ratio": 2.0}, "sk_ratio is 2.0"),
    ],
)
def test_bad_arguments(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resnet(**arguments)


def test_three_stages() -> None:
    torch.manual_seed(0)
    four = resnet(18, width=0.25, stem="stride2")
    shuffle_norms(four)
    three = resnet(18, width=0.25, stem="stride2", stages=3)
    # torchvision's names without those of the last stage
    weights = {name: each for name, each in four.state_dict().items() if not name.startswith("layer4.")}
    three.load_state_dict(weights, strict=True)
    assert three.num_features == 64 == four.num_features // 2
    x = images(24).float()
    with torch.no_grad():
        four.eval().layer4 = nn.Identity()
        torch.testing.assert_close(three.eval()(x), four(x))
    with pytest.raises(ValueError, match="stages is 2"):
        resnet(18, stages=2)
