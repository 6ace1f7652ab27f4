"""How many of torch's threads an evaluation takes: one core's work is not shared, and a quota is kept."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import nn

from fastclr.demo import neighbours
from fastclr.evaluate import linear_probe, protocol
from fastclr.evaluate.encoder import FrozenEncoder
from pipelines import BetonReader
from pipelines.beton import BetonWriter


@pytest.fixture
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    assert torch.get_num_threads() == 3, "given back"
    torch.set_num_threads(before)


@pytest.mark.parametrize(("num_classes", "expected"), [(10, 1), (9000, 3)])
def test_one_thread_trains_a_small_head(three_threads, monkeypatch, num_classes, expected):
    threads = set()
    step = torch.optim.SGD.step

    def counting(*args, **kwargs):
        threads.add(torch.get_num_threads())
        return step(*args, **kwargs)

    monkeypatch.setattr(torch.optim.SGD, "step", counting)
    features, labels = torch.randn(30, 32), torch.arange(30) % 10
    labels[0] = num_classes - 1
    linear_probe(features, labels, features, labels, epochs=1)  # 256 · 32 · C multiplications
    assert threads == {expected}


def test_an_evaluation_takes_no_more_threads_than_there_are_cores(three_threads, monkeypatch, tmp_path):
    threads = []

    class Encoder(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            threads.append(torch.get_num_threads())
            return x.mean((2, 3))

    with BetonWriter(tmp_path / "six.beton", 6) as writer:
        for index in range(6):
            writer.add_raw(np.full((8, 8, 3), 40 * index, np.uint8), label=index % 2)
    model = FrozenEncoder(Encoder(), 8, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2), torch.device("cpu"))
    with BetonReader(tmp_path / "six.beton") as reader:
        for module, cores, run in (
            (protocol, 2, lambda: protocol.evaluate_files(model, reader, reader, note=lambda _: None)),
            (neighbours, 2, lambda: neighbours.extract(model, reader, reader)),
            (neighbours, 8, lambda: neighbours.extract(model, reader, reader)),
        ):
            monkeypatch.setattr(module, "cores", lambda cores=cores: cores)
            threads.clear()
            run()
            assert threads
            assert set(threads) == {min(3, cores)}
