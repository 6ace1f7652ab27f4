"""torchvision's data sets as sources."""

import difflib
import inspect
import threading
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.convert.files import MAX_FILE_MB, read_file, unicode_name
from pipelines.system.terminal import printable

DATASETS = ("cifar10", "cifar100", "stl10")
"""Sets that have a short name, `cifar10:DIR`, and are read from memory."""


class DatasetSource:
    """One of `DATASETS`, downloaded into its folder unless it is there already."""

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
        except (OSError, RuntimeError) as error:  # no network, or a corrupt download
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


class TorchvisionSource:
    """Any data set of torchvision that yields an image and a number.

    Where the data set takes a `loader`, images are read as the files that they are, so that JPEGs can be kept byte
    for byte; else its pixels are taken, an image at a time.

    Args:
        name: class in `torchvision.datasets`.
        root: its folder; it is downloaded into it where torchvision can.
        split: passed on as `split`, or as `train`, which is true for "train"; None: the data set's default.
        max_file_mb: size limit of one image, in MB.

    Raises:
        OSError: it is not there and cannot be downloaded.
        ValueError: there is no such data set or split, or it yields something else.
    """

    kind = "torchvision"

    def __init__(
        self, name: str, root: Path, split: str | None = None, max_file_mb: int = MAX_FILE_MB
    ) -> None:
        self.name = f"{name} {split}" if split else name
        self._root, self._max_file_bytes = root, max_file_mb * 10**6
        self._data = _construct(name, root, split)
        self._lock = threading.Lock()
        if not len(self._data):
            raise ValueError(f"torchvision's {name} in {printable(root)} is empty")
        image, label = self._sample(0)
        self._has_files = isinstance(image, (str, Path))
        if not _is_number(label) or not (self._has_files or hasattr(image, "convert")):
            raise ValueError(
                f"torchvision's {name} yields ({type(image).__name__}, {type(label).__name__}); a source needs an "
                "image and the number of its class"
            )
        self.labels = self._all_labels()
        names = getattr(self._data, "classes", None)
        self.class_names: list[str] | None = None
        if isinstance(names, (list, tuple)) and len(names) > self.labels.max():
            self.class_names = [", ".join(n) if isinstance(n, tuple) else str(n) for n in names]
        self.remarks = [] if self._has_files else ["read as pixels: the data set does not tell its files"]

    def item(self, index: int) -> str:
        if not self._has_files:
            return f"{self.name} {index}"
        path = Path(self._sample(index)[0])
        return unicode_name(
            str(path.relative_to(self._root) if path.is_relative_to(self._root) else path.name)
        )

    def read(self, index: int) -> bytes | np.ndarray:
        if self._has_files:
            return read_file(str(self._sample(index)[0]), self._max_file_bytes)
        # some data sets seed global generators, or read one open file
        with self._lock:
            return np.asarray(self._sample(index)[0].convert("RGB"))

    def _sample(self, index: int) -> tuple[Any, Any]:
        sample = self._data[index]
        if not (isinstance(sample, tuple) and len(sample) == 2):
            raise ValueError(
                f"torchvision's {self.name} yields {type(sample).__name__}; a source needs an image and the number of "
                "its class"
            )
        return sample

    def _all_labels(self) -> np.ndarray:
        """Return int64 [N]: from the data set's own list, where it has one that fits, else from every sample."""
        count = len(self._data)
        if not self._has_files:
            for attribute in ("targets", "labels", "_labels"):
                labels = getattr(self._data, attribute, None)
                if labels is not None and len(labels) == count:
                    found = np.asarray(labels)
                    if found.ndim == 1 and found.dtype.kind in "iu" and self._fits(found):
                        return found.astype(np.int64)
        return np.array([int(self._sample(index)[1]) for index in range(count)], np.int64)

    def _fits(self, labels: np.ndarray) -> bool:
        return all(int(self._sample(k)[1]) == labels[k] for k in (0, len(labels) // 2, len(labels) - 1))


def open_torchvision(text: str, split: str | None, max_file_mb: int = MAX_FILE_MB) -> TorchvisionSource:
    """Open `NAME:DIR`.

    Raises:
        OSError, ValueError: as `TorchvisionSource`.
    """
    name, colon, folder = text.partition(":")
    if not (colon and name and folder):
        raise ValueError(
            f"torchvision:{printable(text)}: it needs a name and a folder, torchvision:Flowers102:DIR"
        )
    return TorchvisionSource(name, Path(folder), split, max_file_mb)


def _construct(name: str, root: Path, split: str | None) -> Any:
    from torchvision import datasets

    kind = getattr(datasets, name, None)
    if name not in datasets.__all__ or not (
        inspect.isclass(kind) and issubclass(kind, datasets.VisionDataset)
    ):
        close = difflib.get_close_matches(name, datasets.__all__, 1, 0.5)
        hint = f"; do you mean {close[0]}?" if close else ""
        raise ValueError(f"torchvision has no data set {printable(name, 60)!r}{hint}")
    parameters = _parameters(kind)
    options: dict[str, Any] = {"root": str(root)} if "root" in parameters else {}
    if "loader" in parameters:
        options["loader"] = _path_itself
    if split is not None:
        if "split" in parameters:
            options["split"] = split
        elif "train" in parameters and split in ("train", "test", "val"):
            options["train"] = split == "train"
        else:
            known = "train and test" if "train" in parameters else "none"
            raise ValueError(f"torchvision's {name} has no split {printable(split)!r}, only {known}")
    first: Exception | None = None
    # some refuse to download what is there already
    for download in (False, True) if "download" in parameters else (False,):
        try:
            return kind(**options, **({"download": True} if download else {}))
        # of a wrong split, missing files or no network each data set says something else
        except Exception as error:
            first = first or error
            last = error
    reason = printable(" ".join(str(last).split()), 200)
    if isinstance(first, (ValueError, TypeError)):
        raise ValueError(f"torchvision's {name}: {printable(' '.join(str(first).split()), 300)}") from first
    raise OSError(
        f"torchvision's {name} is not in {printable(root)} and cannot be downloaded ({reason}); put torchvision's "
        "files there"
    ) from last


def _parameters(kind: type) -> set[str]:
    """Return the names of what a data set's constructor takes, also of what it passes on."""
    names: set[str] = set()
    for base in kind.__mro__:
        if "__init__" not in vars(base):
            continue
        found = inspect.signature(vars(base)["__init__"]).parameters
        names.update(found)
        if not any(parameter.kind == parameter.VAR_KEYWORD for parameter in found.values()):
            break
    return names


def _path_itself(path: Any) -> Any:
    """Stand in for a data set's loader: the path instead of what it holds."""
    return path


def _is_number(label: Any) -> bool:
    return isinstance(label, (int, np.integer)) and not isinstance(label, bool)
