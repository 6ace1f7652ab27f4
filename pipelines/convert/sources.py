"""Sources of images behind one protocol: folders (folder.py), tars (tar.py) and torchvision's data sets."""

import re
from pathlib import Path
from typing import Protocol

import numpy as np

from pipelines.convert.files import MAX_FILE_MB
from pipelines.convert.folder import FolderSource
from pipelines.convert.tar import TarSource
from pipelines.system.terminal import printable

DATASETS = ("cifar10", "cifar100", "stl10")

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://|pipe:")


class Source(Protocol):
    """Images by number, read from any thread."""

    kind: str
    """Kind of source, for the side-car."""
    name: str
    """Name of the source for the side-car, without its path."""
    labels: np.ndarray
    """int64 [N]: −1 where unknown."""
    class_names: list[str] | None
    """Name of each label; None where the names are not known."""
    remarks: list[str]
    """Remarks for the user, one printable line each."""

    def item(self, index: int) -> str:
        """Return the name of an image, for reports."""
        ...

    def read(self, index: int) -> bytes | np.ndarray:
        """Return an image file's bytes, or uint8 [h, w, 3] pixels.

        Raises:
            OSError: the image cannot be read.
            ValueError: the image's file is too large, or stored in a way that is not read.
        """
        ...


def open_source(sources: list[str], split: str | None = None, max_file_mb: int = MAX_FILE_MB) -> Source:
    """Open the source that the user named.

    Args:
        sources: a folder with one folder per class, a folder of images, one of `cifar10:DIR`,
            `cifar100:DIR`, `stl10:DIR`, or any number of tar files.
        split: split of a torchvision data set; None: "train".
        max_file_mb: size limit of one image file, in MB; larger ones fail when they are read.

    Raises:
        OSError: it does not exist or cannot be read.
        ValueError: it holds no image, or its kind cannot be determined.
    """
    names = [_dataset(source) for source in sources]
    if len(sources) == 1 and names[0]:
        return DatasetSource(names[0], Path(sources[0].partition(":")[2]), split or "train")
    if split is not None:
        raise ValueError(
            f"a split is a part of {', '.join(DATASETS)}; of other images, give the folder of the part"
        )
    for source in sources:
        _check_path(source)
    paths = [Path(source) for source in sources]
    if all(path.is_file() for path in paths):
        return TarSource(paths, max_file_mb)
    if len(paths) > 1:
        raise ValueError(f"{len(paths)} sources: only tars can be given several at a time")
    return FolderSource(paths[0], max_file_mb)


def reject_url(path: str, remedy: str) -> None:
    """Raise ValueError where a path is a URL."""
    if _URL.match(path):
        raise ValueError(
            f"{printable(path)} is a URL, and only local folders and files can be used; {remedy}"
        )


def _check_path(source: str) -> None:
    reject_url(source, "download it first")
    path = Path(source)
    if not path.exists():
        known = ", ".join(f"{name}:DIR" for name in DATASETS)
        hint = "; patterns with * or {…} are expanded by the shell: give them without quotes"
        raise FileNotFoundError(
            f"{printable(source)}: no such folder or file; a source is a folder, a tar, or one of {known}"
            + (hint if re.search(r"[*?{]", source) else "")
        )
    if not (path.is_dir() or path.is_file()):
        raise ValueError(
            f"{printable(source)} is a pipe, a socket or a device; a source is read in any order and must be a file "
            "or a folder: save it to a file first"
        )


def _dataset(source: str) -> str:
    name = source.partition(":")[0]
    return name if ":" in source and name in DATASETS else ""


class DatasetSource:
    """A torchvision data set, downloaded into its folder unless it is there already."""

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
