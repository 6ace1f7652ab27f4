"""Which training pictures an encoder finds most alike to some test pictures, before and after training."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from fastclr.evaluate.encoder import FrozenEncoder
from fastclr.evaluate.knn import knn_predict, nearest
from fastclr.preview import class_name
from pipelines import BetonReader
from pipelines.system.cpus import cores
from pipelines.system.threads import at_most_threads

MAX_VOTES = 200
"""k of kNN, as in the literature; fewer where a class has few pictures."""


@dataclass(frozen=True, eq=False)
class Features:
    """An encoder's features of the demo's two files."""

    train: Tensor
    """float32 [N, D]."""
    test: Tensor
    """float32 [M, D]."""


@dataclass(frozen=True, eq=False)
class Neighbours:
    """A test picture and the training pictures nearest to it, each with its class name ("" where unknown)."""

    query: tuple[Image.Image, str]
    before: Sequence[tuple[Image.Image, str]]
    """By the features of random weights."""
    after: Sequence[tuple[Image.Image, str]]
    """By the features of the trained encoder."""


def num_neighbours(labels: Tensor) -> int:
    """Return k for kNN: 200, but at most half of the pictures that a class has on average.

    >>> num_neighbours(torch.arange(4000) % 10), num_neighbours(torch.arange(60) % 3)
    (200, 10)
    """
    num_classes = int(labels.max()) + 1
    return min(MAX_VOTES, max(1, len(labels) // (2 * num_classes)))


def extract(model: FrozenEncoder, train: BetonReader, test: BetonReader) -> Features:
    """Return the features of every picture, from its centre."""
    with at_most_threads(cores()):
        found = [
            model.features(reader, model.center(), title=title)[0]
            for reader, title in ((train, "training pictures"), (test, "test pictures"))
        ]
    return Features(*found)


def accuracy_per_class(features: Features, train: BetonReader, test: BetonReader) -> list[float]:
    """Return the top-1 accuracy (0 to 1) of weighted kNN in each class; 0 for a class without test pictures."""
    train_labels, test_labels = torch.from_numpy(train.labels), torch.from_numpy(test.labels)
    predicted = knn_predict(features.train, train_labels, features.test, k=num_neighbours(train_labels))
    num_classes = int(train_labels.max()) + 1
    classes = F.one_hot(test_labels, num_classes).float()
    correct = (predicted.cpu() == test_labels).float()
    return (correct @ classes / classes.sum(0).clamp_min(1)).tolist()


def gallery(
    train: BetonReader, test: BetonReader, before: Features, after: Features, queries: int = 6, k: int = 6
) -> list[Neighbours]:
    """Return test pictures, of different classes as far as there are, with their k nearest training pictures."""
    labels = test.labels.tolist()
    firsts = sorted({label: number for number, label in reversed(list(enumerate(labels)))}.values())
    chosen = (firsts + [number for number in range(len(test)) if number not in firsts])[:queries]

    def picture(reader: BetonReader, number: int) -> tuple[Image.Image, str]:
        name = class_name(reader, number) if reader.labels[number] >= 0 else ""
        return Image.fromarray(reader.decode(number)), name

    def nearest_pictures(features: Features) -> list[list[tuple[Image.Image, str]]]:
        _, numbers = next(nearest(features.train, features.test[chosen], min(k, len(train))))
        return [[picture(train, number) for number in row] for row in numbers.tolist()]

    queried = [picture(test, number) for number in chosen]
    rows = zip(queried, nearest_pictures(before), nearest_pictures(after), strict=True)
    return [Neighbours(*row) for row in rows]
