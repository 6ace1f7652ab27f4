"""Encoders by name: ours, torchvision's and timm's."""

import pytest
import torch
from torch import nn

from fastclr.model import ENCODERS, GlobalBatchNorm, convert_batchnorm, make_encoder, resnet
from fastclr.model.encoders import check_encoder_name
from fastclr.model.global_bn import GlobalBatchNormAct


def test_resnet_is_ours():
    torch.manual_seed(0)
    made = make_encoder("resnet", depth=10, width=0.125, stem="cifar")
    torch.manual_seed(0)
    ours = resnet(10, 0.125, stem="cifar")
    assert all(torch.equal(t, ours.state_dict()[name]) for name, t in made.state_dict().items())
    assert made.num_features == 64
    with pytest.warns(DeprecationWarning, match="num_features"):
        assert made.feature_width == 64


# width of h by the models' own papers; vgg's and mobilenet's are not what timm calls num_features
@pytest.mark.parametrize(
    ("name", "size", "width"),
    [
        ("torchvision:resnet18", 32, 512),
        ("torchvision:convnext_tiny", 32, 768),
        ("torchvision:vit_b_32", 64, 768),
        ("torchvision:mobilenet_v3_small", 32, 1024),
        ("timm:vit_tiny_patch16_224", 32, 192),
        ("timm:resnet18", 32, 512),
        ("timm:mobilenetv3_small_050", 32, 1024),
    ],
)
def test_width_of_h(name, size, width, require_package):
    require_package("timm")
    torch.manual_seed(0)
    encoder = make_encoder(name, size=size)
    assert encoder.training
    assert encoder.num_features == width
    assert encoder(torch.randn(2, 3, size, size)).shape == (2, width)


def test_a_seed_gives_the_same_weights(require_package):
    require_package("timm")
    for name in ("torchvision:resnet18", "timm:vit_tiny_patch16_224", "timm:resnet18"):
        states = []
        for _ in range(2):
            torch.manual_seed(0)
            states.append(make_encoder(name, size=32).state_dict())
        assert all(torch.equal(tensor, states[1][key]) for key, tensor in states[0].items()), name


@pytest.mark.parametrize("name", ["resnet50", "resnet:50", "timm", "timm:", "torch:resnet18", "", ":"])
def test_unknown_families_list_the_known(name):
    with pytest.raises(ValueError, match=r"there are resnet, torchvision:NAME and timm:NAME"):
        check_encoder_name(name)
    assert set(ENCODERS) == {"resnet", "torchvision", "timm"}


@pytest.mark.parametrize(
    ("name", "size", "reason"),
    [
        ("torchvision:resnet19", 32, "did you mean resnet"),
        ("torchvision:squeezenet1_0", 32, "does not end in one linear layer"),
        ("torchvision:vit_b_16", 33, "takes no images of 33 px"),
        ("timm:vit_tiny", 32, "did you mean vit_tiny_patch16"),
        ("timm:hf-hub:somebody/model", 32, "timm has no model 'hf-hub:somebody/model'"),
    ],
)
def test_unknown_models(name, size, reason, require_package):
    if name.startswith("timm:"):
        require_package("timm")
    with pytest.raises(ValueError, match=reason):
        make_encoder(name, size=size)


def test_timms_batch_norms_keep_their_activation(require_package):
    """They hold it inside; in evaluation mode a converted model computes what it computed before."""
    require_package("timm")
    torch.manual_seed(0)
    encoder = make_encoder("timm:mobilenetv3_small_050", size=32).eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        before, names = encoder(x), list(encoder.state_dict())
        converted = convert_batchnorm(encoder)
        assert torch.equal(converted(x), before)
    assert list(converted.state_dict()) == names
    kinds = {type(m) for m in converted.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
    assert kinds == {GlobalBatchNormAct}
    assert issubclass(GlobalBatchNormAct, GlobalBatchNorm)


def test_batch_norms_of_other_kinds_are_refused():
    class Shifted(nn.BatchNorm2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) + 1

    with pytest.raises(ValueError, match="Shifted"):
        convert_batchnorm(nn.Sequential(Shifted(3)))
