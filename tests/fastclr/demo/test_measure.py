"""measure and gallery against the same things by hand."""

import numpy as np
import pytest
import torch
from torch import nn

from fastclr.demo.measure import gallery, measure, num_neighbours
from fastclr.evaluate import knn_accuracy
from fastclr.evaluate.encoder import Frozen
from pipelines import BetonReader
from pipelines.beton import BetonWriter


class MeanColor(nn.Module):
    """An encoder that can be computed in the head: the mean of each channel."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3))


class OneChannel(nn.Module):
    """Keeps one channel: other neighbours."""

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        return torch.cat([h[:, :1], torch.ones_like(h[:, :1])], 1)


MODEL = Frozen(MeanColor(), 8, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), torch.device("cpu"))
COLORS = np.array([[200, 40, 40], [40, 200, 40], [40, 40, 200]])


def write(path, count: int, seed: int, labelled: bool = True):
    rng = np.random.default_rng(seed)
    with BetonWriter(path, count) as writer:
        for index in range(count):
            color = (COLORS[index % 3] + rng.normal(0, 45, 3)).clip(0, 255).astype(np.uint8)
            writer.add_raw(np.broadcast_to(color, (8, 8, 3)).copy(), label=index % 3 if labelled else -1)
    return path


@pytest.fixture
def files(tmp_path):
    with (
        BetonReader(write(tmp_path / "train.beton", 60, 0)) as train,
        BetonReader(write(tmp_path / "test.beton", 33, 1)) as test,
    ):
        yield train, test


def colors(reader: BetonReader) -> torch.Tensor:
    return torch.from_numpy(np.stack([reader[i][0][0, 0] for i in range(len(reader))]) / 255).float()


def test_scores_are_those_of_the_features_by_hand(files):
    train, test = files
    measured = measure(MODEL, train, test)
    torch.testing.assert_close(measured.train, colors(train), rtol=0, atol=1e-5)
    torch.testing.assert_close(measured.test, colors(test), rtol=0, atol=1e-5)
    labels = [torch.from_numpy(reader.labels) for reader in files]
    expected = knn_accuracy(colors(train), labels[0], colors(test), labels[1], k=10)
    assert measured.scores.knn == pytest.approx(expected)
    assert np.mean(measured.scores.per_class) == pytest.approx(expected)  # the classes are of one size
    assert expected > 0.8
    assert measured.scores.linear > 0.6


def test_the_gallery_holds_the_nearest_pictures(files):
    train, test = files
    measured = measure(MODEL, train, test)
    other = measure(
        Frozen(nn.Sequential(MeanColor(), OneChannel()), 8, (0,) * 3, (1,) * 3, MODEL.device), train, test
    )
    shown = gallery(train, test, other, measured, queries=4, k=5)
    # one of each class first, then whatever comes
    assert [entry.query[1] for entry in shown] == ["class 0", "class 1", "class 2", "class 0"]
    train_colors = torch.nn.functional.normalize(colors(train), dim=1)
    for number, entry in enumerate(shown):
        query = torch.nn.functional.normalize(colors(test)[number], dim=0)
        order = (train_colors @ query).argsort(descending=True)[:5].tolist()
        assert [np.asarray(picture)[0, 0].tolist() for picture, _ in entry.after] == [
            train[i][0][0, 0].tolist() for i in order
        ]
        assert [name for _, name in entry.after] == [f"class {train[i][1]}" for i in order]
        assert [np.asarray(p)[0, 0].tolist() for p, _ in entry.before] != [
            np.asarray(p)[0, 0].tolist() for p, _ in entry.after
        ]


def test_without_labels_there_are_features_but_no_scores(tmp_path, files):
    _, test = files
    with BetonReader(write(tmp_path / "flat.beton", 60, 0, labelled=False)) as train:
        measured = measure(MODEL, train, test)
        assert measured.scores is None
        assert measured.train.shape == (60, 3)
        shown = gallery(train, test, measured, measured, queries=2, k=3)
    assert [name for _, name in shown[0].after] == ["", "", ""]


def test_fewer_neighbours_vote_in_small_classes():
    assert num_neighbours(torch.arange(4000) % 10) == 200
    assert num_neighbours(torch.arange(100_000) % 10) == 200
    assert num_neighbours(torch.arange(300) % 10) == 15
    assert num_neighbours(torch.arange(10)) == 1
