"""Logistic regression on frozen features with L-BFGS: the transfer protocol.

SimCLR, arXiv 2002.05709, appendix B.8.1 (after Kornblith et al. 2019): no augmentation; the L2 weight is chosen
among 45 logarithmically spaced values in 1e-6…1e5 on a validation split, then the classifier is fitted again on
training and validation samples together.

Shape letters: N images, D number of features, C classes.
"""

from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastclr.evaluate.labels import check_labelled_pair
from fastclr.evaluate.linear import head_accuracy

L2_VALUES = tuple(torch.logspace(-6, 5, 45, dtype=torch.float64).tolist())


@dataclass(frozen=True)
class LogisticResult:
    """Result of `logistic_regression`."""

    accuracy: float
    """Top-1 accuracy on the test samples, 0 to 1."""
    l2: float
    """The L2 weight with the best accuracy on the validation split."""
    validation_accuracy: float
    """Top-1 accuracy of that weight on the validation split, 0 to 1."""


def logistic_regression(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    *,
    l2_values: tuple[float, ...] = L2_VALUES,
    validation_share: float = 0.2,
    max_iterations: int = 100,
    seed: int = 0,
) -> LogisticResult:
    """Choose the L2 weight on a validation split, fit on everything, measure on the test samples.

    Minimises mean cross-entropy + l2/(2N)·‖W‖² (the bias is free), from the strongest L2 to the weakest, each
    fit starting at the one before.  Features are standardised by the training set's mean and spread, so that
    L-BFGS converges in few steps; the L2 values refer to standardised features.

    Args:
        train_features, train_labels: float [N, D], int64 [N].
        test_features, test_labels: float [M, D], int64 [M].
        l2_values: candidates.
        validation_share: fraction of the training samples, drawn at random, on which the L2 weight is chosen.
        max_iterations: maximum iterations of each L-BFGS fit.
        seed: seed of the split.

    Raises:
        ValueError: labels missing, test classes beyond C, or fewer than two training samples.
    """
    num_classes = check_labelled_pair(train_features, train_labels, test_features, test_labels)
    if len(train_labels) < 2:
        raise ValueError("logistic regression needs at least two training samples, one of them to validate")
    spread, mean = torch.std_mean(train_features.float(), dim=0)
    spread = spread.clamp_min(1e-6)  # a constant feature becomes 0 instead of NaN
    features, test = ((part.float() - mean) / spread for part in (train_features, test_features))

    order = torch.randperm(len(train_labels), generator=torch.Generator().manual_seed(seed))
    cut = min(max(1, round(len(order) * validation_share)), len(order) - 1)
    validation, fitting = order[:cut], order[cut:]
    best = (-1.0, 0.0)
    fit = partial(fit_logistic, num_classes=num_classes, max_iterations=max_iterations)
    head = None
    for l2 in sorted(l2_values, reverse=True):
        head = fit(features[fitting], train_labels[fitting], l2, start=head)
        best = max(best, (head_accuracy(head, features[validation], train_labels[validation]), l2))
    validation_accuracy, l2 = best
    head = fit(features, train_labels, l2)
    return LogisticResult(head_accuracy(head, test, test_labels), l2, validation_accuracy)


def fit_logistic(
    features: Tensor,
    labels: Tensor,
    l2: float,
    *,
    num_classes: int,
    max_iterations: int = 100,
    start: nn.Linear | None = None,
) -> nn.Linear:
    """Fit the head that minimises mean cross-entropy + l2/(2N)·‖W‖² over features [N, D] and labels [N].

    Args:
        l2: at least 0; large values (beyond N) leave only the bias.
        start: head of an earlier fit to start from, which is changed in place; None starts from zero.
    """
    labels = labels.to(features.device)
    head = start
    if head is None:
        head = nn.Linear(features.shape[1], num_classes, device=features.device)
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
    weight, bias = head.weight, head.bias
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=max_iterations, tolerance_change=1e-9, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(F.linear(features, weight, bias), labels)
        loss = loss + l2 / (2 * len(labels)) * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return head
