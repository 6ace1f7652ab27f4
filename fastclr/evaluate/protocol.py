"""Evaluates an encoder on two labelled files: kNN, linear probe, logistic regression.

By default the linear probe trains on the features of a few augmented passes over the training file, which it takes in
turn.  That lasts minutes on a laptop, where the published protocol, new views in every epoch, would run the encoder 90
times over the data.  `new_views=True` is that protocol.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastclr.evaluate.encoder import (
    FrozenEncoder,
    check_same_classes,
    labelled_samples,
    progress_bar,
    remarks_on_labels,
)
from fastclr.evaluate.features import assert_unchanged, feature_batches
from fastclr.evaluate.knn import knn_accuracy
from fastclr.evaluate.linear import head_accuracy, linear_probe, train_head
from fastclr.evaluate.logistic import logistic_regression
from pipelines import BetonReader
from pipelines.system.cpus import cores
from pipelines.system.threads import at_most_threads

Pair = tuple[Tensor, Tensor, Tensor, Tensor]
"""Training features [N, D] and labels [N], test features [M, D] and labels [M]."""


@dataclass(frozen=True)
class EvalConfig:
    """Settings of an evaluation."""

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
    """Seed of the random crops and of the order."""

    def __post_init__(self) -> None:
        for name, minimum in (("k", 1), ("epochs", 0), ("passes", 1), ("batch_size", 1)):
            if getattr(self, name) < minimum:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {minimum}")
        if not self.temperature > 0:
            raise ValueError(f"temperature is {self.temperature}; it must be positive")
        if not 0 < self.base_lr < math.inf:
            raise ValueError(f"base_lr is {self.base_lr}; it must be finite and above 0")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay is {self.weight_decay}; it must be finite and at least 0")
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"seed is {self.seed}; it must be 0 to 2⁶⁴ − 1")

    @property
    def num_passes(self) -> int:
        """Number of passes that are extracted: no more than there are epochs."""
        return min(self.passes, self.epochs)


def evaluate_files(
    model: FrozenEncoder,
    train: BetonReader,
    test: BetonReader,
    config: EvalConfig = EvalConfig(),
    note: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Measure an encoder by kNN, a linear probe and, if the config says so, logistic regression.

    Unlabelled samples of either file are left out, with a note.

    Args:
        note: receives a line for the user where something differs from what was asked for.

    Returns:
        A dict for JSON: for each measurement its top-1 accuracy (0 to 1), its settings and its seconds.

    Raises:
        ValueError: labels missing, or classes that differ.
        AssertionError: weights or buffers of the encoder changed; a bug.
    """
    num_classes = check_same_classes(train, test)
    for remark in remarks_on_labels(train, test):
        note(remark)
    # torch counts the cores of the machine, of which a container may have only some
    with assert_unchanged(model.encoder), at_most_threads(cores()):
        pair, features = _extract(model, train, test)
        measurements: dict[str, Callable[[], dict[str, Any]]] = {"knn": lambda: _knn(pair, config, note)}
        if config.epochs:
            measurements["linear"] = lambda: _linear(model, train, config, pair, num_classes)
        if config.logistic:
            measurements["logistic"] = lambda: _logistic(pair, config)
        results: dict[str, Any] = {"num_classes": num_classes, "features": features}
        for name, measure in measurements.items():
            start = time.perf_counter()
            results[name] = measure()
            results[name]["seconds"] = time.perf_counter() - start
    return results


def _extract(model: FrozenEncoder, train: BetonReader, test: BetonReader) -> tuple[Pair, dict[str, Any]]:
    """Extract the features of the labelled images of both files; return them and a report of it."""
    start = time.perf_counter()
    train_features, train_labels = model.features(
        train, model.center(), indices=labelled_samples(train), title="training features"
    )
    test_features, test_labels = model.features(
        test, model.center(), indices=labelled_samples(test), title="test features"
    )
    report = {
        "width": train_features.shape[1],
        "train_samples": len(train_labels),
        "test_samples": len(test_labels),
        "seconds": time.perf_counter() - start,
    }
    return (train_features, train_labels, test_features, test_labels), report


def _knn(pair: Pair, config: EvalConfig, note: Callable[[str], None]) -> dict[str, Any]:
    k = min(config.k, len(pair[1]))
    if k < config.k:
        note(f"kNN: k = {config.k} capped at the {k} training samples")
    top1 = knn_accuracy(*pair, k=k, temperature=config.temperature)
    return {"top1": top1, "k": k, "temperature": config.temperature}


def _linear(
    model: FrozenEncoder, train: BetonReader, config: EvalConfig, pair: Pair, num_classes: int
) -> dict[str, Any]:
    if config.new_views:
        top1 = _probe_new_views(model, train, config, pair, num_classes)
        views = "new in every epoch"
    else:
        top1 = _probe_passes(model, train, config, pair)
        views = f"{config.num_passes} passes in turn"
    return {
        "top1": top1,
        "views": views,
        "epochs": config.epochs,
        "batch_size": config.batch_size,
        "base_lr": config.base_lr,
        "weight_decay": config.weight_decay,
    }


def _logistic(pair: Pair, config: EvalConfig) -> dict[str, Any]:
    found = logistic_regression(*pair, seed=config.seed)
    return {"top1": found.accuracy, "l2": found.l2, "validation_top1": found.validation_accuracy}


def _probe_passes(model: FrozenEncoder, train: BetonReader, config: EvalConfig, pair: Pair) -> float:
    labelled = labelled_samples(train)
    passes = [
        model.features(
            train,
            model.crop_flip(),
            epoch,
            labelled,
            f"augmented pass {epoch + 1} of {config.num_passes}",
            seed=config.seed,
        )
        for epoch in range(config.num_passes)
    ]
    return linear_probe(
        torch.stack([features for features, _ in passes]),
        passes[0][1],
        *pair[2:],
        epochs=config.epochs,
        batch_size=config.batch_size,
        base_lr=config.base_lr,
        weight_decay=config.weight_decay,
        seed=config.seed,
        device=model.device,
    )


def _probe_new_views(
    model: FrozenEncoder, train: BetonReader, config: EvalConfig, pair: Pair, num_classes: int
) -> float:
    settings: dict[str, Any] = {
        "order": "random",
        "seed": config.seed,
        "batch_size": config.batch_size,
        "indices": labelled_samples(train),
    }
    with model.loader(train, model.crop_flip(), **settings) as loader, progress_bar() as bar:
        task = bar.add_task("linear probe, epochs", total=config.epochs)
        head = train_head(
            # every iteration over the loader is its next epoch
            lambda epoch: feature_batches(
                model.encoder, loader, device=model.device, autocast=model.autocast
            ),
            num_features=pair[2].shape[1],
            num_classes=num_classes,
            epochs=config.epochs,
            steps_per_epoch=len(loader),
            batch_size=config.batch_size,
            base_lr=config.base_lr,
            weight_decay=config.weight_decay,
            device=model.device,
            progress=lambda done: bar.update(task, completed=done),
        )
    return head_accuracy(head, *pair[2:])
