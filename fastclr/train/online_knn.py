"""kNN accuracy of the encoder on held-out images, measured during the training.

It does not influence the run: random state, running statistics and weights stay the same.
"""

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from fastclr.config import Config
from fastclr.evaluate.encoder import FrozenEncoder, check_same_classes, labelled_samples
from fastclr.evaluate.features import extract_features
from fastclr.evaluate.knn import knn_predict
from fastclr.train.distributed import Ranks
from pipelines import BetonReader

MAX_BANK = 50_000
"""Maximum number of training images that neighbours are searched in; they are evenly spaced over the file."""
K = 200


class OnlineKnn:
    """Weighted kNN (k = 200, T = 0.1) on centre crops of the size of evaluations; the ranks share the images.

    Args:
        encoder: the encoder of the run; each call uses its current weights.
        train: the file that the run trains on.
        val: a file of other images of the same classes.
        config: resolved.
        ranks, device: those of the run.

    Raises:
        ValueError: labels are missing, classes differ, or a file has fewer labelled images than there are ranks.
    """

    def __init__(
        self,
        encoder: nn.Module,
        train: BetonReader,
        val: BetonReader,
        config: Config,
        ranks: Ranks,
        device: torch.device,
    ) -> None:
        check_val(train, val, ranks)
        spec = config.view_specs[0]
        autocast = torch.bfloat16 if config.train.precision == "bfloat16" else None
        self._encoder = FrozenEncoder(
            encoder, config.eval_size, spec.mean, spec.std, device, autocast, num_threads=config.data.threads
        )
        self._train, self._val, self._ranks = train, val, ranks

    def __call__(self) -> float:
        """Return, on every rank, the fraction of the held-out images that kNN puts into their class."""
        device = self._encoder.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            bank, bank_labels = self._gathered(*self._features(self._train, MAX_BANK))
            queries, labels = self._features(self._val, len(self._val))
            predicted = knn_predict(bank, bank_labels, queries, k=min(K, len(bank)))
        counts = torch.tensor([int((predicted == labels).sum()), len(labels)])
        if self._ranks.world_size > 1:
            dist.all_reduce(counts)
        correct, total = counts.tolist()
        return correct / total

    def _features(self, reader: BetonReader, max_images: int) -> tuple[Tensor, Tensor]:
        """Return features and labels of this rank's share of a file's images."""
        labelled = labelled_samples(reader)
        samples = np.arange(len(reader)) if labelled is None else labelled
        chosen = samples[np.linspace(0, len(samples) - 1, min(max_images, len(samples))).round().astype(int)]
        own = chosen[self._ranks.rank :: self._ranks.world_size]
        with self._encoder.loader(reader, self._encoder.center(), indices=own) as loader:
            return extract_features(
                self._encoder.encoder,
                loader,
                device=self._encoder.device,
                autocast=self._encoder.autocast,
            )

    def _gathered(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        if self._ranks.world_size == 1:
            return features, labels
        shares: list[tuple[Tensor, Tensor]] = [(features, labels)] * self._ranks.world_size
        dist.all_gather_object(shares, (features, labels))
        return torch.cat([share[0] for share in shares]), torch.cat([share[1] for share in shares])


def check_val(train: BetonReader, val: BetonReader, ranks: Ranks) -> None:
    """Raise a ValueError if the two files can't give a kNN accuracy."""
    check_same_classes(train, val)
    for reader in (train, val):
        count = int((reader.labels >= 0).sum())
        if count < ranks.world_size:
            raise ValueError(
                f"{reader.path} has {count} labelled images for {ranks.world_size} ranks; leave out --val"
            )
