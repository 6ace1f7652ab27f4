"""The estimate of a step's memory on a CPU, and a run that exceeds it."""

import dataclasses

import psutil
import pytest
import torch
from torch import nn

from fastclr.model import SimCLR, projector, resnet
from fastclr.train.build import activation_bytes, check_memory, resolve
from fastclr.train.pretrain import train
from pipelines import BetonReader


def test_what_is_kept_counts_once_and_weights_not():
    """Per view: the input, 48 values, for the first layer; 5 values, for ReLU and for the second."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 5), nn.ReLU(), nn.Linear(5, 2))
    assert activation_bytes(model, size=4) == 4 * (48 + 5)


def test_is_what_training_takes():
    """Against torch's own account of a forward pass of 16 views."""
    encoder = resnet(18, stem="imagenet")
    model = SimCLR(encoder, projector(encoder.num_features))
    buffers = {name: tensor.clone() for name, tensor in model.named_buffers()}
    estimate = 16 * activation_bytes(model, size=64)
    assert all(torch.equal(tensor, buffers[name]) for name, tensor in model.named_buffers())  # left as it was
    views = torch.zeros(16, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        h, z = model(views)
    held = sum(event.self_device_memory_usage or event.self_cpu_memory_usage for event in profile.events())
    assert estimate == pytest.approx(held + views.nbytes, rel=0.1)
    del h, z


@pytest.mark.parametrize("micro_batch", [None, 2])
def test_what_does_not_fit_is_refused(tiny_config, tiny_file, monkeypatch, micro_batch):
    with BetonReader(tiny_file) as reader:
        config = resolve(tiny_config, reader, torch.device("cpu"))
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, micro_batch=micro_batch))
    encoder = resnet(10, 0.125, stem="cifar")
    model = SimCLR(encoder, projector(encoder.num_features))
    check_memory(config, model)
    kept = activation_bytes(model, 16, config.train.precision == "bfloat16")
    needed = 2 * (micro_batch or 20) * kept  # and the views and weights
    for available, fits in ((needed, False), (2 * needed + 10_000_000, True)):
        monkeypatch.setattr(
            psutil, "virtual_memory", lambda free=available: type("", (), {"available": free})
        )
        if fits:
            check_memory(config, model)
        else:
            with pytest.raises(
                ValueError, match=r"a step of 20 images of 16 px needs about .* --train.batch-size"
            ):
                check_memory(config, model)


def test_a_run_that_does_not_fit_writes_nothing(tiny_config, tiny_file, tmp_path, monkeypatch):
    monkeypatch.setattr("fastclr.train.build.BATCHES", 10**9)
    with pytest.raises(ValueError, match="GiB are available"):
        train(tiny_config, tiny_file, tmp_path / "run")
    assert not (tmp_path / "run").exists()
