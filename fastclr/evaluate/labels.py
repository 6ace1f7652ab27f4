"""Checks that a labelled training and test set fit together."""

from torch import Tensor

from pipelines.beton.layout import count_classes


def check_labels(features: Tensor, labels: Tensor, which: str) -> None:
    """Raises ValueError unless there is one label ≥ 0 per feature, and at least one."""
    if len(features) != len(labels):
        raise ValueError(f"{len(features)} {which} features but {len(labels)} {which} labels")
    if not len(labels):
        raise ValueError(f"there are no {which} samples")
    missing = int((labels < 0).sum())
    if missing:
        raise ValueError(f"{missing} of {len(labels)} {which} samples have no label; evaluation needs labels")


def check_labelled_pair(
    train_features: Tensor, train_labels: Tensor, test_features: Tensor, test_labels: Tensor
) -> int:
    """The number of classes: the largest training label + 1.

    Raises:
        ValueError: labels missing, widths that differ, or test samples of a class beyond the training set's.
    """
    check_labels(train_features, train_labels, "training")
    check_labels(test_features, test_labels, "test")
    if train_features.shape[-1] != test_features.shape[-1]:
        raise ValueError(
            f"training features are {train_features.shape[-1]} wide, test features {test_features.shape[-1]}: "
            "extract both with the same encoder"
        )
    num_classes = count_classes(int(train_labels.max()), "the training set")
    if int(test_labels.max()) >= num_classes:
        raise ValueError(
            f"the test set has class {int(test_labels.max())}, the training set only 0…{num_classes - 1}: "
            "convert both from folders with the same class names"
        )
    return num_classes
