"""The whole evaluation of an encoder: two labelled files in, numbers out.

By default the linear probe trains on the features of a few augmented passes over the training file, which it
revisits in turn; that takes minutes on a laptop, where the published protocol, new views in every epoch, would
run the encoder 90 times over the data.  `new_views=True` is that protocol.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from fastclr.evaluate.encoder import (
    Frozen,
    labelled_samples,
    need_same_classes,
    progress_bar,
    remarks_on_labels,
)
from fastclr.evaluate.features import feature_batches, frozen
from fastclr.evaluate.knn import knn_accuracy
from fastclr.evaluate.linear import head_accuracy, linear_probe, train_head
from fastclr.evaluate.logistic import logistic_regression
from pipelines import BetonReader
from pipelines.system.cpus import cores
from pipelines.system.threads import at_most_threads


@dataclass(frozen=True)
class Protocol:
    """What is measured, and how."""

    k: int = 200
    """Neighbours that vote in kNN; capped at the number of training images."""
    temperature: float = 0.1
    """T in the weight exp(cosine/T) of a neighbour's vote."""
    epochs: int = 90
    """Epochs of the linear probe: 90 in the paper for ImageNet, 100 for CIFAR; 0 leaves it out."""
    passes: int = 4
    """Augmented passes (random crop and flip) whose features the linear probe trains on, in turn."""
    new_views: bool = False
    """The published protocol to the letter: new random crops in every epoch, that is `epochs` passes."""
    batch_size: int = 256
    """B of the linear probe."""
    base_lr: float = 0.1
    """Learning rate of the linear probe is base_lr·B/256, cosine to 0, no warm-up."""
    weight_decay: float = 0.0
    """L2 of the linear probe; 0 for CIFAR, 1e-6 for ImageNet."""
    logistic: bool = False
    """Also logistic regression by L-BFGS without augmentation, the L2 weight chosen among 45 values."""
    seed: int = 0
    """Of the random crops and the order."""

    def __post_init__(self) -> None:
        for name, least in (("k", 1), ("epochs", 0), ("passes", 1), ("batch_size", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        if not self.temperature > 0:
            raise ValueError(f"temperature is {self.temperature}; it must be positive")
        if not 0 < self.base_lr < math.inf:
            raise ValueError(f"base_lr is {self.base_lr}; it must be finite and above 0")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay is {self.weight_decay}; it must be finite and at least 0")
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"seed is {self.seed}; it must be 0 to 2⁶⁴ − 1")

    @property
    def passes_made(self) -> int:
        """Of fewer epochs than passes, one each."""
        return min(self.passes, self.epochs)


def evaluate_files(
    model: Frozen,
    train: BetonReader,
    test: BetonReader,
    protocol: Protocol = Protocol(),
    note: Callable[[str], None] = print,
) -> dict[str, Any]:
    """kNN, linear probe and, if wanted, logistic regression.

    Unlabelled samples of either file are left out, with a note.

    Args:
        note: receives a line for the user where something is other than asked for.

    Returns:
        A dict for JSON: for each measurement its top-1 accuracy (0 to 1), its settings and its seconds.

    Raises:
        ValueError: labels missing, or classes that differ.
        AssertionError: weights or buffers of the encoder changed; a bug.
    """
    num_classes = need_same_classes(train, test)
    for remark in remarks_on_labels(train, test):
        note(remark)
    results: dict[str, Any] = {"num_classes": num_classes}
    # torch counts the machine's cores, a container may have a share of them
    with frozen(model.encoder), at_most_threads(cores()):
        start = time.perf_counter()
        train_features, train_labels = model.features(
            train, model.center(), indices=labelled_samples(train), title="training features"
        )
        test_features, test_labels = model.features(
            test, model.center(), indices=labelled_samples(test), title="test features"
        )
        results["features"] = {
            "width": train_features.shape[1],
            "train_samples": len(train_labels),
            "test_samples": len(test_labels),
            "seconds": time.perf_counter() - start,
        }
        pair = (train_features, train_labels, test_features, test_labels)
        start = time.perf_counter()
        k = min(protocol.k, len(train_labels))
        if k < protocol.k:
            note(f"kNN: k = {protocol.k} capped at the {k} training samples")
        accuracy = knn_accuracy(*pair, k=k, temperature=protocol.temperature)
        results["knn"] = {
            "top1": accuracy,
            "k": k,
            "temperature": protocol.temperature,
            "seconds": time.perf_counter() - start,
        }
        if protocol.epochs:
            start = time.perf_counter()
            probe = _probe_new_views if protocol.new_views else _probe_passes
            results["linear"] = {
                "top1": probe(model, train, protocol, test_features, test_labels, num_classes),
                "views": "new in every epoch"
                if protocol.new_views
                else f"{protocol.passes_made} passes in turn",
                "epochs": protocol.epochs,
                "batch_size": protocol.batch_size,
                "base_lr": protocol.base_lr,
                "weight_decay": protocol.weight_decay,
                "seconds": time.perf_counter() - start,
            }
        if protocol.logistic:
            start = time.perf_counter()
            found = logistic_regression(*pair, seed=protocol.seed)
            results["logistic"] = {
                "top1": found.accuracy,
                "l2": found.l2,
                "validation_top1": found.validation_accuracy,
                "seconds": time.perf_counter() - start,
            }
    return results


def _probe_passes(
    model: Frozen,
    train: BetonReader,
    protocol: Protocol,
    test_features: torch.Tensor,
    test_labels: torch.Tensor,
    num_classes: int,
) -> float:
    labelled = labelled_samples(train)
    passes = [
        model.features(
            train,
            model.crop_flip(),
            epoch,
            labelled,
            f"augmented pass {epoch + 1} of {protocol.passes_made}",
            seed=protocol.seed,
        )
        for epoch in range(protocol.passes_made)
    ]
    return linear_probe(
        torch.stack([features for features, _ in passes]),
        passes[0][1],
        test_features,
        test_labels,
        epochs=protocol.epochs,
        batch_size=protocol.batch_size,
        base_lr=protocol.base_lr,
        weight_decay=protocol.weight_decay,
        seed=protocol.seed,
        device=model.device,
    )


def _probe_new_views(
    model: Frozen,
    train: BetonReader,
    protocol: Protocol,
    test_features: torch.Tensor,
    test_labels: torch.Tensor,
    num_classes: int,
) -> float:
    settings: dict[str, Any] = {
        "order": "random",
        "seed": protocol.seed,
        "batch_size": protocol.batch_size,
        "indices": labelled_samples(train),
    }
    with model.loader(train, model.crop_flip(), **settings) as loader, progress_bar() as bar:
        task = bar.add_task("linear probe, epochs", total=protocol.epochs)
        head = train_head(
            # iterating over the loader again goes on to its next epoch
            lambda epoch: feature_batches(
                model.encoder, loader, device=model.device, autocast=model.autocast
            ),
            width=test_features.shape[1],
            num_classes=num_classes,
            epochs=protocol.epochs,
            steps_per_epoch=len(loader),
            batch_size=protocol.batch_size,
            base_lr=protocol.base_lr,
            weight_decay=protocol.weight_decay,
            device=model.device,
            progress=lambda done: bar.update(task, completed=done),
        )
    return head_accuracy(head, test_features, test_labels)
