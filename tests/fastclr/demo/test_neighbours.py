"""Features, accuracy by class and gallery, against the same things by hand."""

import numpy as np
import pytest
import torch
from torch import nn

from fastclr.demo.neighbours import accuracy_per_class, extract, gallery, num_neighbours
from fastclr.evaluate import knn_predict
from fastclr.evaluate.encoder import FrozenEncoder
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


MODEL = FrozenEncoder(MeanColor(), 8, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), torch.device("cpu"))
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
        BetonReader(write(tmp_path / "test.beton", 34, 1)) as test,
    ):
        yield train, test


def colors(reader: BetonReader) -> torch.Tensor:
    return torch.from_numpy(np.stack([reader[i][0][0, 0] for i in range(len(reader))]) / 255).float()


def test_features_and_accuracy_by_class(files):
    train, test = files
    features = extract(MODEL, train, test)
    torch.testing.assert_close(features.train, colors(train), rtol=0, atol=1e-5)
    torch.testing.assert_close(features.test, colors(test), rtol=0, atol=1e-5)
    labels = [torch.from_numpy(reader.labels) for reader in files]
    correct = knn_predict(colors(train), labels[0], colors(test), k=10) == labels[1]
    expected = [correct[labels[1] == label].float().mean().item() for label in range(3)]
    assert accuracy_per_class(features, train, test) == pytest.approx(expected)
    assert min(expected) > 0.6


def test_a_class_without_test_pictures_has_accuracy_0(tmp_path, files):
    train, _ = files
    with BetonReader(write(tmp_path / "two.beton", 2, 1)) as test:
        found = accuracy_per_class(extract(MODEL, train, test), train, test)
    assert len(found) == 3 and found[2] == 0


def test_the_gallery_holds_the_nearest_pictures(files):
    train, test = files
    features = extract(MODEL, train, test)
    other = extract(
        FrozenEncoder(nn.Sequential(MeanColor(), OneChannel()), 8, (0,) * 3, (1,) * 3, MODEL.device),
        train,
        test,
    )
    shown = gallery(train, test, other, features, queries=4, k=5)
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


def test_a_gallery_without_labels(tmp_path, files):
    _, test = files
    with BetonReader(write(tmp_path / "flat.beton", 60, 0, labelled=False)) as train:
        features = extract(MODEL, train, test)
        shown = gallery(train, test, features, features, queries=2, k=3)
    assert [name for _, name in shown[0].after] == ["", "", ""]


def test_fewer_neighbours_vote_in_small_classes():
    assert num_neighbours(torch.arange(4000) % 10) == 200
    assert num_neighbours(torch.arange(100_000) % 10) == 200
    assert num_neighbours(torch.arange(300) % 10) == 15
    assert num_neighbours(torch.arange(10)) == 1
