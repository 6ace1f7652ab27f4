"""Checkpoints of other projects are recognised, and their encoders compute what the original models do."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from support.other_encoders import (
    ConvertedSimCLR,
    Features,
    flat_children,
    stir,
    torchvision_resnet,
    with_prefix,
)
from torch import nn

from fastclr.export import open_encoder
from fastclr.model import SimCLR, projector, resnet

IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


def save(content: Any, path: Path) -> Path:
    torch.save(content, path)
    return path


def torchvision_file(folder: Path) -> tuple[Path, Features]:
    model = torchvision_resnet("resnet18")
    return save({**model.state_dict(), "fc.weight": torch.zeros(10, 512)}, folder / "a.pth"), model


def data_parallel_file(folder: Path) -> tuple[Path, Features]:
    model = torchvision_resnet("resnet50")
    content = {"state_dict": with_prefix("module.", model), "epoch": 3, "args": argparse.Namespace(lr=0.1)}
    return save(content, folder / "a.pth.tar"), model


def timm_file(folder: Path) -> tuple[Path, Features]:
    import timm

    model = stir(timm.create_model("resnet34", num_classes=0))
    save_file({**model.state_dict(), "fc.bias": torch.zeros(10)}, folder / "model.safetensors")
    return folder / "model.safetensors", model


def timm_training_file(folder: Path) -> tuple[Path, Features]:
    """What timm's training script saves; its metric is a number of NumPy."""
    import timm

    model, average = (stir(timm.create_model("resnet18", num_classes=7)) for _ in range(2))
    content = {
        "epoch": 1,
        "arch": "resnet18",
        "state_dict": model.state_dict(),
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9).state_dict(),
        "state_dict_ema": average.state_dict(),
        "args": argparse.Namespace(model="resnet18"),
        "metric": np.float64(71.5),
    }
    return save(content, folder / "last.pth.tar"), lambda x: model.forward_head(
        model.forward_features(x), pre_logits=True
    )


def lightly_file(folder: Path) -> tuple[Path, Features]:
    """A LightningModule of lightly's examples: MoCo on torchvision's ResNet."""
    from lightly.models.modules import MoCoProjectionHead
    from lightly.models.utils import deactivate_requires_grad

    class MoCo(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = flat_children(torchvision_resnet("resnet18"))
            self.projection_head = MoCoProjectionHead(512, 512, 128)
            self.backbone_momentum = flat_children(torchvision_resnet("resnet18"))
            deactivate_requires_grad(self.backbone_momentum)

    model = MoCo().eval()
    content = {
        "state_dict": model.state_dict(),
        "pytorch-lightning_version": "2.6.6",
        "hyper_parameters": {"a": 1},
    }
    return save(content, folder / "epoch=9.ckpt"), lambda x: model.backbone(x).flatten(1)


def lightly_generator_file(folder: Path) -> tuple[Path, Features]:
    """lightly's own ResNet for CIFAR, in a row, of half the width: its first ReLU is in no module, and is lost."""
    from lightly.models import ResNetGenerator

    model = stir(ResNetGenerator("resnet-34", width=0.5))
    backbone = nn.Sequential(*list(model.children())[:-1], nn.AdaptiveAvgPool2d(1)).eval()
    content = {"state_dict": with_prefix("backbone.", backbone)}
    return save(content, folder / "cifar.ckpt"), lambda x: backbone(x).flatten(1)


def lightly_whole_generator_file(folder: Path) -> tuple[Path, Features]:
    from lightly.models import ResNetGenerator

    model = stir(ResNetGenerator("resnet-50"))
    weights = {**model.state_dict()}
    model.linear = nn.Identity()
    return save(weights, folder / "whole.pt"), model


def solo_learn_file(folder: Path) -> tuple[Path, Features]:
    """solo-learn for CIFAR: a 3×3 stem that is padded by 2, no max-pool."""
    backbone, momentum = torchvision_resnet("resnet18"), torchvision_resnet("resnet18")
    for model in (backbone, momentum):
        model.conv1 = nn.Conv2d(3, 64, 3, 1, padding=2, bias=False)
        model.maxpool = nn.Identity()
    content = {
        "state_dict": {
            **with_prefix("backbone.", backbone),
            **with_prefix("classifier.", nn.Linear(512, 10)),
            **with_prefix("projector.", nn.Sequential(nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 64))),
            **with_prefix("momentum_backbone.", momentum),
            "queue": torch.zeros(2, 64, 4),
        },
        "pytorch-lightning_version": "1.9.0",
    }
    return save(content, folder / "byol-cifar10.ckpt"), backbone


def vissl_file(folder: Path) -> tuple[Path, Features]:
    model = torchvision_resnet("resnet50")
    trunk, heads = with_prefix("_feature_blocks.", model), with_prefix("0.clf.0.", nn.Linear(2048, 128))
    base = {"model": {"trunk": trunk, "heads": heads}, "meters": {}}
    content = {"phase_idx": 99, "classy_state_dict": {"base_model": base, "optimizer": {"lr": 0.1}}}
    return save(content, folder / "model_final_checkpoint_phase99.torch"), model


def mmselfsup_file(folder: Path) -> tuple[Path, Features]:
    model, momentum = torchvision_resnet("resnet50"), torchvision_resnet("resnet50")
    content = {
        "meta": {"epoch": 200},
        "state_dict": {
            **with_prefix("backbone.", model),
            **with_prefix("neck.", nn.Sequential(nn.Linear(2048, 128))),
            **with_prefix("encoder_k.module.0.", momentum),
            "data_preprocessor.mean": torch.zeros(3, 1, 1),
            "queue": torch.zeros(128, 16),
        },
    }
    return save(content, folder / "epoch_200.pth"), model


def moco_file(folder: Path) -> tuple[Path, Features]:
    model = torchvision_resnet("resnet18")
    # saved by an old torch, without num_batches_tracked
    query = {
        name: tensor
        for name, tensor in with_prefix("module.encoder_q.", model).items()
        if "num_batches" not in name
    }
    key = with_prefix("module.encoder_k.", torchvision_resnet("resnet18"))
    head = {"module.encoder_q.fc.0.weight": torch.zeros(512, 512), "module.queue": torch.zeros(128, 16)}
    content = {"arch": "resnet18", "state_dict": {**key, **query, **head}}
    return save(content, folder / "moco.pth.tar"), model


def ours_file(folder: Path) -> tuple[Path, Features]:
    encoder = stir(resnet(50, 0.5, sk_ratio=0.125))
    model = SimCLR(encoder, projector(1024))
    return save({"format": "x", "model": model.state_dict(), "step": 3}, folder / "last.pt"), encoder


def converted(name: str, layers: list[int], **options: Any) -> Callable[[Path], tuple[Path, Features]]:
    def write(folder: Path) -> tuple[Path, Features]:
        model = stir(ConvertedSimCLR(layers, **options))
        return save(
            {"resnet": model.state_dict(), "head": {"layers.0.weight": torch.zeros(4, 4)}}, folder / name
        ), model

    return write


def wider_file(folder: Path) -> tuple[Path, Features]:
    """The converter of SimCLR v1 writes torchvision's names, of a ResNet of any width."""
    encoder = stir(resnet(50, 2.0))
    state = {**encoder.state_dict(), "fc.weight": torch.zeros(10, 4096)}
    return save({"state_dict": state}, folder / "resnet50-2x.pth"), encoder


IMAGENET_STEM, CIFAR_STEM = "imagenet", "cifar"
LAYOUTS: dict[str, tuple[Callable[[Path], tuple[Path, Features]], tuple, dict[str, int]]] = {
    # writer, (depth, width, stem), what is dropped
    "torchvision": (torchvision_file, (18, 1, IMAGENET_STEM), {"fc": 1}),
    "data parallel": (data_parallel_file, (50, 1, IMAGENET_STEM), {}),
    "timm": (timm_file, (34, 1, IMAGENET_STEM), {"fc": 1}),
    "timm's training": (timm_training_file, (18, 1, IMAGENET_STEM), {"fc": 2, "state_dict_ema": 122}),
    "lightly": (lightly_file, (18, 1, IMAGENET_STEM), {"projection_head": 4, "backbone_momentum": 120}),
    "lightly's generator": (lightly_generator_file, (34, 0.5, CIFAR_STEM), {}),
    "lightly's generator, whole": (lightly_whole_generator_file, (50, 1, CIFAR_STEM), {"linear": 2}),
    "solo-learn": (
        solo_learn_file,
        (18, 1, CIFAR_STEM),
        {"classifier": 2, "projector": 4, "momentum_backbone": 120, "queue": 1},
    ),
    "VISSL": (vissl_file, (50, 1, IMAGENET_STEM), {"heads": 2}),
    "MMSelfSup": (
        mmselfsup_file,
        (50, 1, IMAGENET_STEM),
        {"neck": 2, "encoder_k": 318, "data_preprocessor": 1, "queue": 1},
    ),
    "MoCo": (moco_file, (18, 1, IMAGENET_STEM), {"encoder_k": 120, "fc": 1, "queue": 1}),
    "ours": (ours_file, (50, 0.5, IMAGENET_STEM), {"projector": 11}),
    "SimCLR v1": (wider_file, (50, 2, IMAGENET_STEM), {"fc": 1}),
    "SimCLR v2": (converted("r50_1x_sk0.pth", [3, 4, 6, 3]), (50, 1, IMAGENET_STEM), {"fc": 2, "head": 1}),
    "SimCLR v2, selective": (
        converted("r50_1x_sk1.pth", [3, 4, 6, 3], ratio=0.0625),
        (50, 1, IMAGENET_STEM),
        {"fc": 2, "head": 1},
    ),
    "SimCLR v2, basic": (
        converted("r18.pth", [2, 2, 2, 2], basic=True),
        (18, 1, IMAGENET_STEM),
        {"fc": 2, "head": 1},
    ),
}
SLOW = {"SimCLR v1", "ours"}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_features_are_those_of_the_original(layout, tmp_path, require_package):
    for package in ("timm", "lightly"):
        if package in layout:
            require_package(package)
    write, (depth, width, stem), dropped = LAYOUTS[layout]
    torch.manual_seed(0)
    path, original = write(tmp_path)
    said: list[str] = []
    encoder, meta = open_encoder(path, note=said.append)
    size = 64 if stem == IMAGENET_STEM else 32
    images = torch.randn(3, 3, size, size)
    with torch.no_grad():
        expected, features = original(images), encoder(images)
    assert features.shape == expected.shape == (3, encoder.num_features)
    assert expected.std() > 1e-3
    torch.testing.assert_close(features, expected, rtol=1e-5, atol=1e-5)

    assert not encoder.training
    kwargs = meta["kwargs"]
    assert (kwargs["depth"], kwargs["width"], kwargs["stem"]) == (depth, width, stem)
    assert meta["size"] == (224 if stem == IMAGENET_STEM else 32)
    assert (meta["mean"], meta["std"]) == (([0] * 3, [1] * 3) if "v2" in layout else IMAGENET)
    found, assumed = said
    assert f"ResNet-{depth} ×{width:g}" in found
    assert "\n" not in found
    for name, count in dropped.items():
        assert f"{name} ({count} tensor" in found
    assert ("dropped: nothing" in found) == (not dropped)
    assert "--size" in assumed and "--mean" in assumed


def test_what_is_given_is_not_assumed(tmp_path):
    path, _ = torchvision_file(tmp_path)
    said: list[str] = []
    _, meta = open_encoder(path, size=96, mean=(0.5, 0.5, 0.5), std=(0.25, 0.5, 1.0), note=said.append)
    assert (meta["size"], meta["mean"], meta["std"]) == (96, [0.5] * 3, [0.25, 0.5, 1.0])
    assert len(said) == 1


def vit_file(folder: Path) -> Path:
    from torchvision.models import vit_b_32

    return save(
        {"state_dict": dict(list(vit_b_32(image_size=32).state_dict().items())[:9])}, folder / "vit.pth"
    )


def mixed_file(folder: Path) -> Path:
    state = torchvision_resnet("resnet18").state_dict()
    state["layer3.1.conv2.weight"] = torch.zeros(128, 256, 3, 3)
    return save(state, folder / "mixed.pth")


def two_encoders_file(folder: Path) -> Path:
    one, other = torchvision_resnet("resnet18"), torchvision_resnet("resnet18")
    return save({**with_prefix("left.", one), **with_prefix("right.", other)}, folder / "two.pth")


def changed(folder: Path, **changes: torch.Tensor | None) -> Path:
    state = {**torchvision_resnet("resnet18").state_dict(), **changes}
    return save({name: t for name, t in state.items() if t is not None}, folder / "changed.pth")


class Payload:
    """Unpickled, it would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (Path.write_text, (self.path, "run"))


BAD: dict[str, tuple[Callable[[Path], Path], str]] = {
    "whole model": (
        lambda folder: save(torchvision_resnet(), folder / "m.pth"),
        r"m.pth holds code \(torchvision",
    ),
    "code": (
        lambda folder: save({"state_dict": {}, "x": Payload(folder / "ran")}, folder / "c.pth"),
        "holds code",
    ),
    "not a ResNet": (vit_file, "vit.pth: none of its 9 tensors"),
    "no tensors": (lambda folder: save({"epoch": 3}, folder / "n.pth"), "n.pth holds no tensors"),
    "two": (two_encoders_file, "2 encoders, under left. and right."),
    "mixed shapes": (
        mixed_file,
        r"layer3.1.conv2.weight is \[128, 256, 3, 3\]; .* has \[256, 256, 3, 3\] there",
    ),
    "wide inside": (
        lambda folder: save(torchvision_resnet("wide_resnet50_2").state_dict(), folder / "w.pth"),
        r"w.pth: bn1.weight is \[64\]|conv1.weight",
    ),
    "gray": (
        lambda folder: changed(folder, **{"conv1.weight": torch.zeros(64, 1, 7, 7)}),
        "takes 1 channels",
    ),
    "kernel": (
        lambda folder: changed(folder, **{"conv1.weight": torch.zeros(64, 3, 5, 5)}),
        "5×5 convolution",
    ),
    "missing": (
        lambda folder: changed(folder, **{"layer2.0.bn1.bias": None}),
        "layer2.0.bn1.bias is missing",
    ),
    "more": (
        lambda folder: changed(folder, **{"layer2.0.se.fc.bias": torch.zeros(3)}),
        "layer2.0.se.fc.bias is no part",
    ),
    "depth": (
        lambda folder: save(torchvision_resnet("resnext50_32x4d").state_dict(), folder / "x.pth"),
        "x.pth: .* is ",
    ),
    "stages": (
        lambda folder: changed(folder, **{f"layer2.2.bn{k}.bias": torch.zeros(3) for k in (1, 2)}),
        "stages have 2/3/2/2 basic blocks",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_files_get_one_line(what, tmp_path):
    write, message = BAD[what]
    path = write(tmp_path)
    with pytest.raises(ValueError, match=message) as error:
        open_encoder(path)
    assert "\n" not in f"{error.value}"
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["a.pth", "a.ckpt", "a.safetensors"])
def test_corrupt_files_get_one_line(name, tmp_path):
    path = tmp_path / name
    whole, model = torchvision_file(tmp_path)
    if name.endswith("safetensors"):
        save_file(model.state_dict(), whole)
    data = whole.read_bytes()
    for content in (data[: len(data) // 2], data[:1000], b"", b"\x80\x02}", b"<html>not found</html>"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=name) as error:
            open_encoder(path)
        assert "\n" not in f"{error.value}"


def test_missing_files(tmp_path):
    for name in ("no.pth", "no", "no.safetensors"):
        with pytest.raises(OSError, match=name):
            open_encoder(tmp_path / name)
