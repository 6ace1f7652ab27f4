"""A captured step is the eager step; what can't be captured is refused before anything is written."""

import dataclasses
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from support.tiny_run import write_tiny_file

from fastclr.config import Config, OptimConfig, TrainConfig
from fastclr.schedule import Scheduled
from fastclr.train.build import check_graph
from fastclr.train.distributed import Ranks
from fastclr.train.pretrain import train
from fastclr.train.sinks import read_metrics
from fastclr.train.step import CapturedStep, EagerStep

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


def test_a_captured_step_is_captured_anew_for_another_size_or_loss(monkeypatch):
    """With a stand-in for CUDA: three steps warm up, one is captured and replayed, and a change begins anew."""
    log: list[tuple[str, int, str]] = []
    weight = torch.nn.Parameter(torch.ones(()))

    class Forward(torch.nn.Module):
        def forward(self, views: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            h = views.mean((1, 2, 3)) * weight
            return h, h

    def warm_up(self, views, loss_of):
        log.append(("eager", views.shape[-1], loss_of.__name__))
        return self._step.compute(views, loss_of)

    def capture(self, views, loss_of):
        log.append(("capture", views.shape[-1], loss_of.__name__))
        self._views = torch.empty_like(views)

        def replay() -> None:
            log.append(("replay", views.shape[-1], loss_of.__name__))
            self._results = self._step.compute(self._views, loss_of)

        return SimpleNamespace(replay=replay)

    def hot(z: torch.Tensor) -> torch.Tensor:
        return z.sum()

    def cold(z: torch.Tensor) -> torch.Tensor:
        return 2 * z.sum()

    monkeypatch.setattr(CapturedStep, "_on_side_stream", warm_up)
    monkeypatch.setattr(CapturedStep, "_capture", capture)
    monkeypatch.setattr(torch.cuda, "Stream", lambda: None)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: log.append(("wait", 0, "")))
    optimizer = torch.optim.SGD([weight], 0.0)
    step = CapturedStep(EagerStep(Forward(), hot, optimizer, nullcontext))
    losses = []
    for size, loss_of, times in ((8, hot, 5), (16, hot, 4), (16, cold, 4), (8, cold, 2)):
        for _ in range(times):
            losses.append(step(torch.full((2, 3, 3, size, size), 0.5), 0.1, loss_of).loss.item())
    # the sum over 6 views of mean 0.5, with a weight that each step lowers by lr · dL/dw, 0.3 or 0.6
    assert losses == pytest.approx(
        [3 - 0.9 * k for k in range(9)] + [2 * (3 - 0.9 * 9 - 1.8 * k) for k in range(6)], abs=1e-5
    )
    assert log == [
        *(3 * [("eager", 8, "hot")] + [("capture", 8, "hot")] + 2 * [("replay", 8, "hot")]),
        *([("wait", 0, "")] + 3 * [("eager", 16, "hot")] + [("capture", 16, "hot"), ("replay", 16, "hot")]),
        *(
            [("wait", 0, "")]
            + 3 * [("eager", 16, "cold")]
            + [("capture", 16, "cold"), ("replay", 16, "cold")]
        ),
        *([("wait", 0, "")] + 2 * [("eager", 8, "cold")]),
    ]


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


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_captured_run_follows_a_schedule(tmp_path, tiny_config, monkeypatch):
    """Two sizes and two temperatures: three graphs, and the losses of the eager run before rounding grows."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    file = write_tiny_file(tmp_path / "tiny.beton")
    schedule = (
        Scheduled("views.size", (0.0, 0.3), (8, 16)),
        Scheduled("loss.temperature", (0.0, 0.6), (0.2, 0.1)),
    )
    captures, capture = [], CapturedStep._capture
    monkeypatch.setattr(
        CapturedStep,
        "_capture",
        lambda self, views, loss_of: captures.append(views.shape[-1]) or capture(self, views, loss_of),
    )
    losses = {}
    for graph in (False, True):
        train_config = dataclasses.replace(
            tiny_config.train, graph=graph, device="cuda", precision="float32", log_every=1, epochs=10
        )
        config = dataclasses.replace(tiny_config, train=train_config, schedule=schedule)
        train(config, file, tmp_path / str(graph))
        losses[graph] = [record["loss"] for record in read_metrics(tmp_path / str(graph))]
    assert captures == [8, 16, 16]
    assert losses[True][:8] == pytest.approx(losses[False][:8], rel=1e-2)
    assert losses[True] == pytest.approx(losses[False], rel=0.2)
