"""`torchvision:NAME` and `timm:NAME`: published weights, here random ones where downloads are kept."""

import hashlib
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support.other_encoders import stir
from torch import nn
from torchvision import models

from fastclr.export import open_encoder


@pytest.fixture
def torch_home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def no_network(monkeypatch):
    def fail(*_: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def test_torchvision(torch_home):
    torch.manual_seed(0)
    model = stir(models.resnet18())
    torch.save(model.state_dict(), torch_home / "resnet18-f37072fd.pth")
    encoder, meta = open_encoder("torchvision:resnet18", size=64)
    model.fc = nn.Identity()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(encoder(images), model(images))
    assert (meta["encoder"], meta["kwargs"], meta["size"]) == ("torchvision:resnet18", {"size": 64}, 64)
    assert (meta["mean"], meta["std"]) == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    assert not encoder.training
    _, meta = open_encoder("torchvision:resnet18")
    assert meta["size"] == 224


OPEN = """
import sys, torch
from fastclr.export import open_encoder
encoder, meta = open_encoder("timm:" + sys.argv[1], size=64)
torch.save((encoder.state_dict(), meta), sys.argv[2])
"""


@pytest.mark.parametrize("name", ["resnet18", "resnet18.a1_in1k"])
def test_timm(name, tmp_path, require_package):
    """In a process of its own: the hub's client reads its settings when it is imported."""
    timm = require_package("timm")
    model = stir(timm.create_model("resnet18"))
    repository = tmp_path / "hub" / "models--timm--resnet18.a1_in1k"
    commit = hashlib.sha1(b"").hexdigest()
    (repository / "snapshots" / commit).mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    save_file(model.state_dict(), repository / "snapshots" / commit / "model.safetensors")
    environment = {**os.environ, "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", OPEN, name, tmp_path / "out.pt"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    state, meta = torch.load(tmp_path / "out.pt")
    assert state and all(torch.equal(tensor, model.state_dict()[key]) for key, tensor in state.items())
    assert meta["encoder"] == f"timm:{name}"
    assert (meta["size"], meta["mean"]) == (64, [0.485, 0.456, 0.406])


@pytest.mark.usefixtures("torch_home", "no_network")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "torchvision:resnet18",
            "torchvision:resnet18: its weights are not in the cache and can't be downloaded",
        ),
        ("timm:resnet18", "timm:resnet18: its weights are not in the cache and can't be downloaded"),
        ("torchvision:resnet19", "did you mean resnet1"),
        ("timm:resnet19", "did you mean resnet1"),
        ("timm:resnet18.of_mine", "Invalid pretrained tag"),
        ("timm:resnet10", "timm has no model 'resnet10'"),
        ("timm:test_resnet", "timm"),
        ("torchvision:", "torchvision"),
        ("timm:", "timm"),
    ],
)
def test_one_line_without_network(name, message, require_package, monkeypatch, tmp_path):
    timm = require_package("timm")
    assert timm is not None
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match=message) as error:
        open_encoder(name)
    assert "\n" not in f"{error.value}"


def test_a_cached_file_of_another_model(torch_home):
    torch.save({"conv1.weight": torch.zeros(1)}, torch_home / "resnet18-f37072fd.pth")
    with pytest.raises(
        ValueError, match="torchvision:resnet18 has published weights for other shapes"
    ) as error:
        open_encoder("torchvision:resnet18")
    assert "\n" not in f"{error.value}"
