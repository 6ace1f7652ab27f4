"""Weighted k-nearest-neighbour classification of features.

Wu et al. 2018 (arXiv 1805.01978, section 3.4).  Cosine similarity; with Euclidean distance SimCLR's features
score about three points lower.
"""

import warnings
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from fastclr.evaluate.labels import check_labelled_pair, check_labels
from pipelines.beton.layout import count_classes

SIMILARITY_BYTES = 128 << 20
"""Maximum bytes of a block of similarities, and of votes, that is held at a time."""


def knn_accuracy(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    *,
    k: int = 200,
    temperature: float = 0.1,
) -> float:
    """Return the fraction of the test samples that `knn_predict` puts into their class.

    Args:
        train_features: float [N, D]; need not be normalised.
        train_labels: int64 [N], classes 0, 1, …
        test_features: float [M, D].
        test_labels: int64 [M].
        k: neighbours that vote; capped at N, with a warning.
        temperature: T in a vote's weight exp(s/T).

    Returns:
        Top-1 accuracy, 0 to 1.

    Raises:
        ValueError: shapes that do not fit, no samples, labels missing (negative), test classes that the training set
            lacks, k < 1 or T ≤ 0.

    >>> points = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
    >>> knn_accuracy(points, torch.tensor([0, 0, 1]), torch.tensor([[2.0, 0.1]]), torch.tensor([0]), k=2)
    1.0
    """
    check_labelled_pair(train_features, train_labels, test_features, test_labels)
    predicted = knn_predict(train_features, train_labels, test_features, k=k, temperature=temperature)
    return (predicted == test_labels.to(predicted.device)).double().mean().item()


def knn_predict(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    *,
    k: int = 200,
    temperature: float = 0.1,
) -> Tensor:
    """Return the class with the largest vote Σ exp(s_i/T) over the k nearest training samples i; s is the cosine.

    Arguments and errors are those of `knn_accuracy`.

    Returns:
        int64 [M], predicted classes.
    """
    check_labels(train_features, train_labels, "training")
    if k < 1:
        raise ValueError(f"k must be at least 1 neighbour, got {k}")
    if not temperature > 0:
        raise ValueError(f"the temperature of kNN must be positive, got {temperature}")
    if k > len(train_features):
        warnings.warn(f"kNN: k = {k} capped at the {len(train_features)} training samples", stacklevel=2)
        k = len(train_features)
    labels = train_labels.to(train_features.device)
    num_classes = count_classes(int(labels.max()), "the training set")
    predictions = []
    for similarity, neighbours in nearest(train_features, test_features, k):
        # weights relative to the nearest neighbour give the same vote, and cannot overflow or vanish for any T
        weights = ((similarity - similarity[:, :1]) / temperature).exp()
        # few enough rows at a time that the votes stay within the bound, too
        rows = max(1, SIMILARITY_BYTES // (4 * num_classes))
        for part, voters in zip(weights.split(rows), labels[neighbours].split(rows), strict=True):
            votes = part.new_zeros(len(part), num_classes).scatter_add_(1, voters, part)
            predictions.append(votes.argmax(1))
    return torch.cat(predictions)


def nearest(train_features: Tensor, test_features: Tensor, k: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield cosines [m, k] and sample numbers [m, k] of each test sample's k nearest training samples, nearest first.

    A chunk has m test samples, so few that their m·N similarities stay under `SIMILARITY_BYTES`.

    Raises:
        ValueError: the two sets have features of different length, or one of them is empty.
    """
    if (
        train_features.ndim != 2
        or test_features.ndim != 2
        or train_features.shape[1] != test_features.shape[1]
    ):
        raise ValueError(
            f"training features {tuple(train_features.shape)} and test features {tuple(test_features.shape)} "
            "must be [N, D] and [M, D]"
        )
    if not len(train_features) or not len(test_features):
        raise ValueError("nearest neighbours need at least one training and one test sample")
    keys = F.normalize(train_features.float(), dim=1).T
    chunk = max(1, SIMILARITY_BYTES // (4 * len(train_features)))
    for queries in F.normalize(test_features.float(), dim=1).to(keys.device).split(chunk):
        similarity, neighbours = (queries @ keys).topk(k, dim=1)
        yield similarity, neighbours
