"""torchvision's data sets as sources."""

from pathlib import Path

import numpy as np

DATASETS = ("cifar10", "cifar100", "stl10")


class DatasetSource:
    """A torchvision data set, downloaded into its folder where it is not there yet."""

    class_titles: list[str] | None = None
    sequential = False

    def __init__(self, name: str, root: Path, split: str) -> None:
        from torchvision import datasets

        self.kind, self.name = "torchvision", f"{name} {split}"
        try:
            if name == "stl10":
                data = datasets.STL10(str(root), split, download=True)
                self._pixels = data.data.transpose(0, 2, 3, 1)
                labels = data.labels
            else:
                if split not in ("train", "test"):
                    raise ValueError(f"{name} has no split {split!r}, only train and test")
                kind = datasets.CIFAR10 if name == "cifar10" else datasets.CIFAR100
                data = kind(str(root), split == "train", download=True)
                self._pixels, labels = data.data, data.targets
        except (OSError, RuntimeError) as error:  # no network, or a damaged download
            raise OSError(
                f"{name} is not in {root} and cannot be downloaded ({error}); put torchvision's files there"
            ) from error
        self.labels = np.asarray(labels, np.int64)
        self.class_names: list[str] | None = list(data.classes)
        self.remarks: list[str] = []

    def item(self, index: int) -> str:
        return f"{self.name} {index}"

    def read(self, index: int) -> np.ndarray:
        return self._pixels[index]
