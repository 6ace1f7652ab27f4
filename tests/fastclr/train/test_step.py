"""A captured step is the eager step; what can't be captured is refused before anything is written."""

import dataclasses

import pytest
import torch
from support.tiny_run import write_tiny_file

from fastclr.config import Config, OptimConfig, TrainConfig
from fastclr.train.build import check_graph
from fastclr.train.distributed import Ranks
from fastclr.train.pretrain import train
from fastclr.train.sinks import read_metrics

CUDA = torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("config", "device", "ranks", "missing"),
    [
        (Config(), torch.device("cpu"), Ranks(), "a CUDA device"),
        (Config(), CUDA, Ranks(0, 2), "a single rank"),
        (Config(optim=OptimConfig(name="sgd")), CUDA, Ranks(), "optim.name lars"),
        (Config(train=TrainConfig(micro_batch=8)), CUDA, Ranks(), "no train.micro_batch"),
    ],
)
def test_what_cannot_be_captured(config, device, ranks, missing):
    check_graph(config, device, ranks)
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, graph=True))
    with pytest.raises(ValueError, match=rf"train\.graph needs {missing}; leave it out"):
        check_graph(config, device, ranks)


def test_a_run_without_a_gpu_writes_nothing(tmp_path, tiny_file, tiny_config):
    config = dataclasses.replace(tiny_config, train=dataclasses.replace(tiny_config.train, graph=True))
    with pytest.raises(ValueError, match=r"train\.graph needs a CUDA device"):
        train(config, tiny_file, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_captured_run_is_the_eager_run(tmp_path, tiny_config, monkeypatch):
    """20 steps: 3 of them warm the capture up, 17 are replays.  The first 8 must have the same losses: by step 13 a
    relative error of 1e-7 in the convolutions has grown to 1 %."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    file = write_tiny_file(tmp_path / "tiny.beton")
    records = {}
    for graph in (False, True):
        changed = dataclasses.replace(
            tiny_config.train, graph=graph, device="cuda", precision="float32", log_every=1
        )
        train(dataclasses.replace(tiny_config, train=changed), file, tmp_path / str(graph))
        records[graph] = read_metrics(tmp_path / str(graph))
    assert len(records[True]) == 20
    for captured, eager in zip(records[True], records[False], strict=True):
        assert captured["lr"] == eager["lr"]
        assert captured["loss"] == pytest.approx(eager["loss"], rel=0.2)
    for captured, eager in zip(records[True][:8], records[False][:8], strict=True):
        # cuDNN may choose other algorithms while it captures
        assert captured["loss"] == pytest.approx(eager["loss"], rel=1e-2)
    losses = [record["loss"] for record in records[True]]
    assert len(set(losses)) == 20, "each step has a loss of its own"
