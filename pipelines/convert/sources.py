"""Where images come from: folders, tars (tar.py) and torchvision's data sets, behind one protocol."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
"""Endings of the file names that are taken for images, in any case."""
DATASETS = ("cifar10", "cifar100", "stl10")
PARTS = ("train", "training", "val", "valid", "validation", "test")
"""Names of folders that are no classes."""


class Source(Protocol):
    """Images by number, read from any thread."""

    kind: str
    """What it is, for the side-car."""
    name: str
    """What the user would call it, for the side-car; no path."""
    labels: np.ndarray
    """int64 [N]: −1 where unknown."""
    class_names: list[str] | None
    """Name of each label, where they are known."""
    remarks: list[str]
    """What the user may want to know of it, a line each."""

    def item(self, index: int) -> str:
        """The name of an image, for reports."""
        ...

    def read(self, index: int) -> bytes | np.ndarray:
        """An image file's bytes, or uint8 [h, w, 3] pixels.  OSError: it cannot be read."""
        ...


def open_source(sources: list[str], split: str | None = None) -> Source:
    """The source that a user means.

    Args:
        sources: a folder with one folder per class, a folder of images, one of `cifar10:DIR`,
            `cifar100:DIR`, `stl10:DIR`, or any number of tar files.
        split: which part of a torchvision data set; None: "train".

    Raises:
        OSError: it does not exist or cannot be read.
        ValueError: there is no image in it, or what it is cannot be told.
    """
    from pipelines.convert.tar import TarSource

    names = [_dataset(source) for source in sources]
    if len(sources) == 1 and names[0]:
        return DatasetSource(names[0], Path(sources[0].partition(":")[2]), split or "train")
    if split is not None:
        raise ValueError(
            f"a split is a part of {', '.join(DATASETS)}; of other images, give the folder of the part"
        )
    paths = [Path(source) for source in sources]
    for path in paths:
        if not path.exists():
            known = ", ".join(f"{name}:DIR" for name in DATASETS)
            raise FileNotFoundError(
                f"{path}: no such folder or file; a source is a folder, a tar, or one of {known}"
            )
    if all(path.is_file() for path in paths):
        return TarSource(paths)
    if len(paths) > 1:
        raise ValueError(f"{len(paths)} sources: only tars can be given several at a time")
    return FolderSource(paths[0])


def _dataset(source: str) -> str:
    name = source.partition(":")[0]
    return name if ":" in source and name in DATASETS else ""


class FolderSource:
    """A folder of images, or of one folder of images per class, as torchvision's `ImageFolder` has it.

    Labels are the positions of the class folders in sorted order.  Below a class folder, and below a folder
    without classes, images may lie at any depth.  Names that start with a dot are passed over.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.name = root, root.resolve().name
        self.remarks: list[str] = []
        with os.scandir(root) as entries:
            visible = sorted((e for e in entries if not e.name.startswith(".")), key=lambda e: e.name)
        loose = [e.name for e in visible if _is_image(e)]
        folders = [e.name for e in visible if e.is_dir()]
        others = Counter(suffix_of(e.name) for e in visible if e.is_file() and not _is_image(e))
        found = {folder: sorted(_images_below(root / folder, folder, others)) for folder in folders}
        populated = [folder for folder in folders if found[folder]]
        if loose and populated:
            raise ValueError(
                f"{root}: {len(loose)} images lie beside {len(populated)} folders of images, so it is not clear "
                "whether the folders are classes; move the ones or the others"
            )
        if not loose and not populated:
            raise no_image(str(root), others)
        refuse_parts(str(root), populated)
        self.class_names: list[str] | None = None
        if populated:
            self.kind, self.class_names = "class folders", folders
            self._items = [item for folder in folders for item in found[folder]]
            if len(folders) == 1 and all(item.count("/") > 1 for item in self._items):
                self.remarks.append(f"all images lie deeper: did you mean {root / folders[0]}?")
            counts = [len(found[folder]) for folder in folders]
            self.labels = np.repeat(np.arange(len(folders)), counts)
        else:
            self.kind, self._items = "flat folder", loose
            self.labels = np.full(len(loose), -1)
        self.remarks += passed_over(others)

    def item(self, index: int) -> str:
        return self._items[index]

    def read(self, index: int) -> bytes:
        with open(f"{self.root}/{self._items[index]}", "rb", buffering=0) as file:
            return file.read()


def no_image(source: str, others: Counter[str]) -> ValueError:
    """What to raise where there is none; it says what is there, counted by suffix, in place of one."""
    words = [f"{source}: no image in it (looked for {', '.join(SUFFIXES)})", *passed_over(others)]
    if others[".tar"]:
        words.append(
            "tars in it are not opened: give those, or unpack each into a folder named for its class"
        )
    return ValueError("; ".join(words))


def passed_over(suffixes: Counter[str]) -> list[str]:
    """A remark on the files that were not taken for images, if there are any; counted by their suffixes."""
    counts = ", ".join(f"{count:,} {suffix}" for suffix, count in suffixes.most_common(5))
    return [f"passed over, as no images by their names: {counts}"] if counts else []


def suffix_of(name: str) -> str:
    """For `passed_over`."""
    return Path(name).suffix.lower() or "without a suffix"


def refuse_parts(root: str, classes: list[str]) -> None:
    """ValueError where the class folders are "train", "val" or the like: a level too high, a common slip."""
    parts = [name for name in classes if name.lower() in PARTS]
    if parts and (len(parts) > 1 or parts == classes):
        raise ValueError(
            f"{root}: {' and '.join(parts)} look like parts of a data set, not like classes; convert them one at a time"
        )


def _is_image(entry: os.DirEntry) -> bool:
    """By its name; a broken link counts, so that it is reported, a named pipe, which would hang us, does not."""
    if not entry.name.lower().endswith(SUFFIXES):
        return False
    return entry.is_file() or (entry.is_symlink() and not os.path.exists(entry.path))


def _images_below(folder: Path, prefix: str, others: Counter[str]) -> Iterator[str]:
    """Images in a folder and its folders, as paths from the folder above; links to folders are followed.

    Counts other files by their suffix in `others`.
    """
    pending, seen = [(str(folder), prefix)], set()
    while pending:
        path, prefix = pending.pop()
        status = os.stat(path)
        if (status.st_dev, status.st_ino) in seen:  # a link that leads back up
            continue
        seen.add((status.st_dev, status.st_ino))
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    pending.append((entry.path, f"{prefix}/{entry.name}"))
                elif _is_image(entry):
                    yield f"{prefix}/{entry.name}"
                else:
                    others[suffix_of(entry.name)] += 1


class DatasetSource:
    """A torchvision data set, downloaded into its folder where it is not there yet."""

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
