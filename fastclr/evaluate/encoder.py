"""A frozen encoder that turns labelled `.beton` files into features, and checks of the labels."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn

from fastclr.evaluate.features import extract_features
from pipelines import BetonReader, TwoViewLoader, ViewSpec
from pipelines.system.terminal import printable


@dataclass(frozen=True, eq=False)
class FrozenEncoder:
    """An encoder to evaluate, and the settings of its views."""

    encoder: nn.Module
    """Maps [B, 3, H, W] to [B, D]; on `device`."""
    size: int
    """Side length of an image in pixels; that of training, or a larger one: random crops enlarge objects."""
    mean: tuple[float, float, float]
    """Normalisation, as in training."""
    std: tuple[float, float, float]
    device: torch.device
    autocast: torch.dtype | None = None
    """Type of convolutions and matrix products; None is float32."""
    num_threads: int | None = None
    """Loader threads; None: one on a CPU, which the encoder keeps busy, and one per core beside a GPU."""
    batch_size: int = 256
    """Images per step of the encoder; the features do not depend on it."""

    @classmethod
    def from_meta(
        cls, encoder: nn.Module, meta: dict[str, Any], device: torch.device, **changes: Any
    ) -> "FrozenEncoder":
        """Make one from what `load_encoder` returns; the encoder moves to the device."""
        encoder = encoder.to(device).to(memory_format=torch.channels_last)
        return cls(encoder, meta["size"], tuple(meta["mean"]), tuple(meta["std"]), device, **changes)

    def center(self) -> ViewSpec:
        """Return the spec of the view that is tested, the centre of the image."""
        return ViewSpec.center(self.size, mean=self.mean, std=self.std)

    def crop_flip(self) -> ViewSpec:
        """Return the spec of the views that a linear probe trains on."""
        return ViewSpec.crop_flip(self.size, mean=self.mean, std=self.std)

    def loader(self, reader: BetonReader, spec: ViewSpec, **changes: Any) -> TwoViewLoader:
        """Return a loader over all of the file, in its order; `changes` replace the loader's arguments."""
        settings = {
            "views": spec,
            # every process reads the whole file, also under torchrun
            "world_size": 1,
            "order": "sequential",
            "drop_last": False,
            "num_threads": 1 if self.num_threads is None and self.device.type == "cpu" else self.num_threads,
            "device": self.device,
            "dtype": torch.float32 if self.autocast is None else None,
            **changes,
        }
        return TwoViewLoader(reader, settings.pop("batch_size", self.batch_size), **settings)

    def features(
        self,
        reader: BetonReader,
        spec: ViewSpec,
        epoch: int = 0,
        indices: np.ndarray | None = None,
        title: str = "",
        seed: int = 0,
    ) -> tuple[Tensor, Tensor]:
        """Return features [N, D] and labels [N] of the file's samples, in the order of the file.

        Args:
            epoch: epoch of the drawn numbers; another one gives other random crops.
            indices: these samples only; None: all.
            title: title of the progress bar.
            seed: seed of the drawn numbers.
        """
        with self.loader(reader, spec, indices=indices, seed=seed) as loader, progress_bar() as bar:
            loader.set_epoch(epoch)
            batches = bar.track(loader, len(loader), description=title)
            return extract_features(self.encoder, batches, device=self.device, autocast=self.autocast)


def progress_bar() -> Progress:
    """Return a progress bar that shows on a terminal only, and disappears when it is done."""
    console = Console(stderr=True)
    return Progress(
        *Progress.get_default_columns(), transient=True, console=console, disable=not console.is_terminal
    )


def labelled_samples(reader: BetonReader) -> np.ndarray | None:
    """Return the numbers of the samples that have a label; None if all have one.

    Raises:
        ValueError: no sample has a label.
    """
    labelled = np.flatnonzero(reader.labels >= 0)
    if not len(labelled):
        raise ValueError(
            f"{reader.path} has no labels, which an evaluation needs; convert it from a folder with one "
            "sub-folder per class"
        )
    return None if len(labelled) == len(reader) else labelled


def check_same_classes(train: BetonReader, test: BetonReader) -> int:
    """Check that two files have the same classes, and return their number.

    Raises:
        ValueError: a file without labels; class names that differ; a test class that the training file lacks.
    """
    for reader in (train, test):
        labelled_samples(reader)
    ours, theirs = train.class_names, test.class_names
    if ours and theirs and ours != theirs:
        k = next(
            (i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b),
            min(len(ours), len(theirs)),
        )
        names = [repr(printable(each[k], 80)) if k < len(each) else "missing" for each in (ours, theirs)]
        raise ValueError(
            f"{test.path} and {train.path} have other classes: number {k} is {names[1]} and {names[0]}; "
            "convert both from folders with the same class names"
        )
    num_classes = train.num_classes
    if test.num_classes > num_classes:
        raise ValueError(
            f"{test.path} has class {test.num_classes - 1}, {train.path} only 0…{num_classes - 1}; "
            "convert both from folders with the same class names"
        )
    return num_classes


def remarks_on_labels(train: BetonReader, test: BetonReader) -> list[str]:
    """Return what the user should know about the labels of two files before trusting an accuracy."""
    remarks = []
    for reader in (train, test):
        missing = int((reader.labels < 0).sum())
        if missing:
            remarks.append(
                f"{reader.path}: {missing} of {len(reader)} samples have no label and are left out"
            )
    if train.fingerprint == test.fingerprint:
        remarks.append("the test file is the training file: every image is its own nearest neighbour")
    unnamed = [f"{reader.path}" for reader in (train, test) if not reader.class_names]
    if unnamed:
        remarks.append(
            f"{' and '.join(unnamed)} {'has' if len(unnamed) == 1 else 'have'} no class names (the side-car .json of "
            "`fastclr convert` lies beside a file), so they can't be compared; label k is taken as one class in both"
        )
    num_classes = len(np.unique(train.labels[train.labels >= 0]))
    if num_classes == 1:
        remarks.append(
            f"{train.path} has only one class: every encoder gets 100 %, so the accuracy says nothing"
        )
    return remarks
