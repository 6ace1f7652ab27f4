"""Checkpoints are whole or absent, and an encoder file rebuilds its encoder."""

import errno
import json
import os
import pickle
import resource

import pytest
import torch
import torchvision
from safetensors.torch import load_file, save_file

from fastclr.model import resnet
from fastclr.train.checkpoint import (
    FORMAT,
    STATE_KEYS,
    atomic_write,
    differences,
    export_encoder,
    load_checkpoint,
    load_encoder,
    save_checkpoint,
)
from fastclr.train.encoder_file import encoder_title

STATE = {key: torch.arange(3) for key in STATE_KEYS}
META = {"sk_ratio": 0.0, "size": 32, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.2], "step": 7}


def test_checkpoint_comes_back(tmp_path):
    save_checkpoint(tmp_path / "last.pt", STATE | {"step": 3})
    state = load_checkpoint(tmp_path / "last.pt")
    assert state["step"] == 3
    assert state["model"].tolist() == [0, 1, 2]
    assert os.listdir(tmp_path) == ["last.pt"]


@pytest.mark.parametrize("kept", [0, 1, 100, -1])  # empty, one byte, in the header, the last byte missing
def test_cut_checkpoint(tmp_path, kept):
    path = tmp_path / "last.pt"
    save_checkpoint(path, STATE)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"last.pt is corrupt"):
        load_checkpoint(path)


def test_foreign_files_are_no_checkpoints(tmp_path):
    path = tmp_path / "last.pt"
    torch.save({"step": 3}, path)
    with pytest.raises(ValueError, match="no checkpoint of this version"):
        load_checkpoint(path)
    torch.save({"format": FORMAT, "step": 3}, path)
    with pytest.raises(ValueError, match="no checkpoint of this version"):
        load_checkpoint(path)


def test_a_checkpoint_cannot_run_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    path = tmp_path / "last.pt"
    path.write_bytes(pickle.dumps(Evil(), protocol=2))
    with pytest.raises(ValueError, match="corrupt"):
        load_checkpoint(path)
    torch.save({"format": FORMAT, **STATE, "model": Evil()}, path)
    with pytest.raises(ValueError, match="corrupt"):
        load_checkpoint(path)
    assert not (tmp_path / "ran").exists()


def test_a_full_disk_keeps_the_previous_checkpoint(tmp_path):
    """A limit on the size of files stands in for the full disk: the same write fails in the same place."""
    path = tmp_path / "last.pt"
    save_checkpoint(path, STATE | {"step": 1})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"last\.pt") as caught:
            save_checkpoint(path, STATE | {"step": 2, "model": torch.zeros(1_000_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.errno == errno.EFBIG
    assert caught.value.filename == str(path)
    assert load_checkpoint(path)["step"] == 1
    assert os.listdir(tmp_path) == ["last.pt"]


def test_an_interrupted_write_leaves_nothing(tmp_path):
    def interrupted():
        with atomic_write(tmp_path / "file") as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert os.listdir(tmp_path) == []


def test_differences_names_every_setting():
    assert differences({"a": 1, "b": 2, "c": 3}, {"a": 1, "b": 5, "d": 4}) == [
        "b was 2, is now 5",
        "c was 3, is now None",
        "d was None, is now 4",
    ]


@pytest.mark.parametrize(("depth", "width", "stem"), [(10, 0.25, "cifar"), (18, 0.5, "imagenet")])
def test_encoder_file_rebuilds_the_encoder(tmp_path, depth, width, stem):
    torch.manual_seed(0)
    encoder = resnet(depth, width, stem=stem).to(memory_format=torch.channels_last)
    x = torch.randn(4, 3, 32, 32)
    encoder(x)  # moves the running statistics from where a fresh encoder has them
    export_encoder(
        tmp_path / "encoder.safetensors", encoder, META | {"depth": depth, "width": width, "stem": stem}
    )
    rebuilt, meta = load_encoder(tmp_path)  # the folder will do
    assert not rebuilt.training
    assert torch.equal(rebuilt(x), encoder.eval().to(memory_format=torch.contiguous_format)(x))
    given = META | {"depth": depth, "width": width, "stem": stem}
    kwargs = {key: given[key] for key in ("depth", "width", "stem", "sk_ratio")}
    assert meta == given | {"encoder": "resnet", "kwargs": kwargs}


def test_encoder_file_of_three_stages(tmp_path):
    kwargs = {"depth": 10, "width": 0.25, "stem": "stride2", "sk_ratio": 0.0, "stages": 3}
    encoder = resnet(**kwargs).eval()
    export_encoder(tmp_path / "encoder.safetensors", encoder, META | {"encoder": "resnet", "kwargs": kwargs})
    rebuilt, meta = load_encoder(tmp_path)
    x = torch.randn(4, 3, 24, 24)
    assert torch.equal(rebuilt(x), encoder(x))
    assert (meta["kwargs"], rebuilt.num_features) == (kwargs, 64)
    assert encoder_title(meta) == "ResNet-10 ×0.25 of 3 stages"


def test_encoder_file_fits_torchvision(tmp_path):
    path = tmp_path / "encoder.safetensors"
    torch.manual_seed(0)
    encoder = resnet(18, stem="imagenet").eval()
    export_encoder(path, encoder, META | {"depth": 18, "width": 1.0, "stem": "imagenet"})
    theirs = torchvision.models.resnet18().eval()
    missing, unexpected = theirs.load_state_dict(load_file(path), strict=False)
    assert (missing, unexpected) == (["fc.weight", "fc.bias"], [])
    theirs.fc = torch.nn.Identity()
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(encoder(x), theirs(x), rtol=1e-5, atol=1e-5)


def test_bad_encoder_files(tmp_path):
    path = tmp_path / "encoder.safetensors"
    with pytest.raises(FileNotFoundError, match="no encoder here"):
        load_encoder(path)
    export_encoder(path, resnet(10, 0.25, stem="cifar"), META | {"depth": 10, "width": 0.25, "stem": "cifar"})
    whole = path.read_bytes()
    for kept in (0, 7, len(whole) // 2):
        path.write_bytes(whole[:kept])
        with pytest.raises(ValueError, match="no safetensors"):
            load_encoder(path)
    path.write_bytes(whole)
    weights = load_file(path)
    save_file(weights, path)
    with pytest.raises(ValueError, match="not written by fastclr: its metadata lacks encoder"):
        load_encoder(path)
    export_encoder(path, resnet(10, 0.25, stem="cifar"), META | {"depth": 10, "width": 0.5, "stem": "cifar"})
    with pytest.raises(ValueError, match="weights don't fit the metadata"):
        load_encoder(path)


def test_a_flipped_bit_in_a_tensor_is_noticed(tmp_path):
    """torch loads such a file without a word."""
    path = tmp_path / "last.pt"
    weights = torch.arange(1000, dtype=torch.int32)
    save_checkpoint(path, STATE | {"model": weights})
    content = bytearray(path.read_bytes())
    content[content.index(weights.numpy().tobytes()) + 2000] ^= 4
    path.write_bytes(content)
    assert torch.load(path, weights_only=True)["model"].tolist() != weights.tolist()
    with pytest.raises(ValueError, match=r"last\.pt is corrupt .*checksum"):
        load_checkpoint(path)


@pytest.mark.parametrize("place", ["weights", "metadata"])
def test_a_flipped_bit_in_an_encoder_is_noticed(tmp_path, place):
    path = tmp_path / "encoder.safetensors"
    export_encoder(path, resnet(10, 0.25, stem="cifar"), META | {"depth": 10, "width": 0.25, "stem": "cifar"})
    content = bytearray(path.read_bytes())
    # the last weight, or the first digit of the size
    content[-2 if place == "weights" else content.index(b'"size":"') + 8] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"encoder\.safetensors is corrupt: its checksum"):
        load_encoder(path)


def test_an_encoder_of_0_1_has_no_checksum(tmp_path):
    encoder = resnet(10, 0.25, stem="cifar")
    meta = META | {"depth": 10, "width": 0.25, "stem": "cifar"}
    entries = {"format": "pt", **{key: json.dumps(value) for key, value in meta.items()}}
    save_file(encoder.state_dict(), tmp_path / "encoder.safetensors", entries)
    loaded, found = load_encoder(tmp_path)
    assert all(torch.equal(t, encoder.state_dict()[name]) for name, t in loaded.state_dict().items())
    assert (found["encoder"], found["kwargs"]["width"], found["depth"]) == ("resnet", 0.25, 10)
