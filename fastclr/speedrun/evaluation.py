"""The accuracy of a seed: features of one plain forward pass per image, kNN, and a linear probe where it decides."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fastclr.config import Config
from fastclr.device import pick_device
from fastclr.evaluate.encoder import FrozenEncoder, check_same_classes, labelled_samples
from fastclr.evaluate.features import state_digest
from fastclr.evaluate.knn import knn_accuracy
from fastclr.evaluate.protocol import EvalConfig, evaluate_files
from fastclr.train.encoder_file import load_encoder
from pipelines import BetonReader
from pipelines.system.threads import torch_threads

K, TEMPERATURE = 200, 0.1
"""Neighbours and temperature of the kNN that decides."""
K_UNWEIGHTED = 10
"""Neighbours of the unweighted kNN that is reported beside it, as in dkobak/simclr-cifar10."""
LINEAR = EvalConfig(epochs=90, new_views=True)
"""The linear probe of a rung that is decided by it."""


def evaluate(
    config: Config, run: Path, train: Sequence[str], test: Sequence[str], metric: str = "knn"
) -> dict[str, Any]:
    """Return the accuracies of a run's encoder, 0 to 1, and hashes of its state before and after.

    The files are opened with their labels; the encoder runs in eval mode, in the precision of its training.

    Args:
        config: the complete recipe.
        run: the run folder.
        train, test: the files of both sets.
        metric: "linear" adds a linear probe of 90 epochs.

    Raises:
        ValueError: files without labels, or with other classes.
    """
    encoder, meta = load_encoder(run)
    device = pick_device(config.train.device)
    autocast = torch.bfloat16 if config.train.precision == "bfloat16" else None
    model = FrozenEncoder.from_meta(encoder, meta, device, autocast=autocast, num_threads=config.data.threads)
    model = replace(model, size=config.eval_size)
    with (
        BetonReader(list(train)) as train_reader,
        BetonReader(list(test)) as test_reader,
        torch_threads(config.train.threads or torch.get_num_threads()),
    ):
        num_classes = check_same_classes(train_reader, test_reader)
        before = state_digest(encoder)
        bank = model.features(train_reader, model.center(), indices=labelled_samples(train_reader))
        queries = model.features(test_reader, model.center())
        k = min(K, len(bank[0]))
        result: dict[str, Any] = {
            "size": model.size,
            "views_per_image": 1,
            "k": k,
            "temperature": TEMPERATURE,
            "knn": knn_accuracy(*bank, *queries, k=k, temperature=TEMPERATURE),
            # with an infinite temperature every vote weighs the same
            "knn10": knn_accuracy(*bank, *queries, k=min(K_UNWEIGHTED, k), temperature=math.inf),
            "linear": None,
            "train_samples": len(bank[0]),
            "test_samples": len(queries[0]),
            "num_classes": num_classes,
        }
        if metric == "linear":
            probe = replace(LINEAR, k=k)
            found = evaluate_files(model, train_reader, test_reader, probe, note=lambda text: None)
            result["linear"] = found["linear"]["top1"]
        return {**result, "encoder_before": before, "encoder_after": state_digest(encoder)}
