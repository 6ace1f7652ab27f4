"""Linear probe: the accuracy of a linear classifier on frozen features.

SimCLR, arXiv 2002.05709, appendix B.6 and B.7: a zero-initialised head on h of the frozen encoder, random crop
and flip for training, SGD with Nesterov momentum 0.9, learning rate 0.1·B/256, cosine decay to 0 per step
without warm-up, 90 epochs (ImageNet) or 100 (CIFAR), weight decay 0 or 1e-6.

The encoder does not learn, so its features of a view never change: `linear_probe` trains on features that were
extracted beforehand, from one or several augmented passes.  `train_head` takes any source of batches: given features
of new views in every epoch, it follows the published protocol exactly.

Shape letters: N images, B images of a batch, D number of features, C classes, P augmented passes.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastclr.evaluate.labels import check_labelled_pair
from pipelines.system.threads import at_most_threads

Batches = Iterable[tuple[Tensor, Tensor]]
"""Features [B, D] and labels [B] of the batches of an epoch."""
SMALL = 1 << 26
"""Heads with up to this many multiplications in a step's forward pass are trained by one CPU thread: several threads
would wait for each other, on a busy machine far longer than they compute."""


def linear_probe(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    *,
    epochs: int = 90,
    batch_size: int = 256,
    base_lr: float = 0.1,
    weight_decay: float = 0.0,
    seed: int = 0,
    device: torch.device | str | None = None,
) -> float:
    """Train a linear head on extracted features and measure it.

    Args:
        train_features: floating point, [N, D], or [P, N, D]: P augmented passes over the same images, of which
            epoch e takes pass e mod P.
        train_labels: int64 [N], classes 0, 1, …
        test_features: float [M, D].
        test_labels: int64 [M].
        epochs: passes over the N samples.
        batch_size: B; the last batch of an epoch may be smaller.
        base_lr: learning rate per 256 samples of a batch.
        weight_decay: L2, on weight and bias.
        seed: seed of the order of the samples.
        device: device that trains the head; None: that of the features.

    Returns:
        Top-1 accuracy on the test samples, 0 to 1.

    Raises:
        ValueError: labels missing, classes in the test set that the training set lacks, shapes that do not fit.

    >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> linear_probe(x, torch.tensor([0, 1]), 2 * x, torch.tensor([0, 1]), batch_size=2)
    1.0
    """
    passes = train_features if train_features.ndim == 3 else train_features[None]
    if not len(passes):
        raise ValueError("the linear probe needs at least one pass of training features")
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
    num_classes = check_labelled_pair(passes[0], train_labels, test_features, test_labels)
    generator = torch.Generator().manual_seed(seed)

    def batches(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        features = passes[epoch % len(passes)]
        for rows in torch.randperm(len(train_labels), generator=generator).split(batch_size):
            yield features[rows].float(), train_labels[rows]

    num_features = passes.shape[-1]
    small = batch_size * num_features * num_classes <= SMALL
    with at_most_threads(1) if small else nullcontext():
        head = train_head(
            batches,
            num_features=num_features,
            num_classes=num_classes,
            epochs=epochs,
            steps_per_epoch=math.ceil(len(train_labels) / batch_size),
            batch_size=batch_size,
            base_lr=base_lr,
            weight_decay=weight_decay,
            device=device or passes.device,
        )
    return head_accuracy(head, test_features, test_labels)


def train_head(
    batches: Callable[[int], Batches],
    *,
    num_features: int,
    num_classes: int,
    epochs: int,
    steps_per_epoch: int,
    batch_size: int,
    base_lr: float = 0.1,
    weight_decay: float = 0.0,
    device: torch.device | str = "cpu",
    progress: Callable[[int], None] | None = None,
) -> nn.Linear:
    """Train a zero-initialised head from D features to C classes by the protocol of this module.

    Args:
        batches: epoch → the epoch's batches of features and labels.
        steps_per_epoch: batches of an epoch; the cosine reaches 0 after epochs·steps_per_epoch steps.
        batch_size: the nominal B of the learning rate base_lr·B/256.
        progress: called after each epoch with the number of epochs done.

    Raises:
        ValueError: an epoch with another number of batches than `steps_per_epoch`, epochs < 1, or a
            non-finite loss.
    """
    if epochs < 1:
        raise ValueError(f"the linear probe needs at least 1 epoch, got {epochs}")
    head = nn.Linear(num_features, num_classes, device=device)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    peak = base_lr * batch_size / 256
    optimizer = torch.optim.SGD(
        head.parameters(), lr=peak, momentum=0.9, nesterov=True, weight_decay=weight_decay
    )
    total = epochs * steps_per_epoch
    step = 0
    for epoch in range(epochs):
        for features, labels in batches(epoch):
            optimizer.param_groups[0]["lr"] = 0.5 * peak * (1 + math.cos(math.pi * step / total))
            loss = F.cross_entropy(head(features.to(device)), labels.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
        # a schedule of another length than the training is a common mistake in linear probes
        if step != (epoch + 1) * steps_per_epoch:
            raise ValueError(
                f"epoch {epoch} had {step - epoch * steps_per_epoch} batches, not {steps_per_epoch}"
            )
        if not loss.isfinite():
            raise ValueError(
                f"the linear probe diverged in epoch {epoch}: lower its learning rate ({base_lr})"
            )
        if progress:
            progress(epoch + 1)
    return head


def head_accuracy(head: nn.Linear, features: Tensor, labels: Tensor) -> float:
    """Return the top-1 accuracy (0 to 1) of a head on features [M, D] with labels [M]."""
    with torch.no_grad():
        predicted = head(features.float().to(head.weight.device)).argmax(1)
    return (predicted == labels.to(predicted.device)).double().mean().item()
