"""How well an encoder does on the demo's two files, and which training pictures it finds alike."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from fastclr.demo.report import Neighbours, Scores
from fastclr.evaluate.encoder import Frozen
from fastclr.evaluate.features import frozen
from fastclr.evaluate.knn import knn_predict, nearest
from fastclr.evaluate.linear import linear_probe
from fastclr.preview import class_name
from pipelines import BetonReader
from pipelines.system.cpus import cores
from pipelines.system.threads import at_most_threads

MOST_VOTES = 200
"""k of kNN, as in the literature; fewer where a class has few pictures."""
PROBE_EPOCHS, PROBE_PASSES = 40, 2
"""Of the linear probe: epochs, and augmented passes whose features they use in turn."""


@dataclass(frozen=True, eq=False)
class Measured:
    """An encoder's features of both files, and how well they do."""

    train: Tensor
    """float32 [N, D]."""
    test: Tensor
    """float32 [M, D]."""
    scores: Scores | None
    """None where the pictures have no labels."""


def num_neighbours(labels: Tensor) -> int:
    """k for kNN: 200, but at most half of what a class has on average.

    >>> num_neighbours(torch.arange(4000) % 10), num_neighbours(torch.arange(60) % 3)
    (200, 10)
    """
    num_classes = int(labels.max()) + 1
    return min(MOST_VOTES, max(1, len(labels) // (2 * num_classes)))


def measure(model: Frozen, train: BetonReader, test: BetonReader) -> Measured:
    """Features of every picture and, where all have labels, weighted kNN and a linear probe on them."""
    with frozen(model.encoder), at_most_threads(cores()):
        train_features, train_labels = model.features(train, model.center(), title="training pictures")
        test_features, test_labels = model.features(test, model.center(), title="test pictures")
        if min(int(train_labels.min()), int(test_labels.min())) < 0:
            return Measured(train_features, test_features, None)
        passes = [
            model.features(train, model.crop_flip(), epoch, title="crops for the linear probe")[0]
            for epoch in range(PROBE_PASSES)
        ]
    predicted = knn_predict(train_features, train_labels, test_features, k=num_neighbours(train_labels))
    right = (predicted == test_labels).float()
    scores = Scores(
        knn=right.mean().item(),
        linear=linear_probe(
            torch.stack(passes), train_labels, test_features, test_labels, epochs=PROBE_EPOCHS
        ),
        per_class=tuple(
            # a class that the test pictures lack has no accuracy; the chart shows an empty row
            right[test_labels == label].mean().nan_to_num(0).item()
            for label in range(int(train_labels.max()) + 1)
        ),
    )
    return Measured(train_features, test_features, scores)


def gallery(
    train: BetonReader, test: BetonReader, before: Measured, after: Measured, queries: int = 6, k: int = 6
) -> list[Neighbours]:
    """Test pictures, of different classes as far as there are, with their k nearest training pictures."""
    labels = test.labels.tolist()
    firsts = sorted({label: number for number, label in reversed(list(enumerate(labels)))}.values())
    chosen = (firsts + [number for number in range(len(test)) if number not in firsts])[:queries]

    def picture(reader: BetonReader, number: int) -> tuple[Image.Image, str]:
        name = class_name(reader, number) if reader.labels[number] >= 0 else ""
        return Image.fromarray(reader.decode(number)), name

    def found(features: Measured) -> Sequence[list[int]]:
        count = min(k, len(train))
        return next(nearest(features.train, features.test[chosen], count))[1].tolist()

    return [
        Neighbours(
            query=picture(test, number),
            before=[picture(train, neighbour) for neighbour in ours],
            after=[picture(train, neighbour) for neighbour in theirs],
        )
        for number, ours, theirs in zip(chosen, found(before), found(after), strict=True)
    ]
