"""Checks of labels, and that a training and a test set fit together."""

from torch import Tensor

from pipelines.beton.layout import count_classes


def check_labels(features: Tensor, labels: Tensor, which: str) -> None:
    """Raise ValueError unless there is at least one feature, and one label ≥ 0 for each."""
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
    """Check both sets, and return the number of classes: the largest training label + 1.

    Raises:
        ValueError: labels are missing, features differ in length, or a test label exceeds the training labels.
    """
    check_labels(train_features, train_labels, "training")
    check_labels(test_features, test_labels, "test")
    if train_features.shape[-1] != test_features.shape[-1]:
        raise ValueError(
            f"training images have {train_features.shape[-1]} features, test images {test_features.shape[-1]}: "
            "extract both with the same encoder"
        )
    num_classes = count_classes(int(train_labels.max()), "the training set")
    if int(test_labels.max()) >= num_classes:
        raise ValueError(
            f"the test set has class {int(test_labels.max())}, the training set only 0…{num_classes - 1}: "
            "convert both from folders with the same class names"
        )
    return num_classes
