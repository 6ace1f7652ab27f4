"""ImageNet (ILSVRC 2012) as people have it: archives, Kaggle's tree, folders, or Hugging Face's shards.

    DIR/ILSVRC2012_img_train.tar  ILSVRC2012_img_val.tar  ILSVRC2012_devkit_t12.tar.gz        as downloaded
    DIR/ILSVRC/Data/CLS-LOC/{train,val}  LOC_val_solution.csv  LOC_synset_mapping.txt         Kaggle's
    DIR/train/n…/*.JPEG  val/n…/*.JPEG, or val/*.JPEG and one of the files of labels above    folders
    DIR/{train,validation}-00000-of-….parquet, or in DIR/data                                 Hugging Face's

Classes are the sorted wnids (WordNet's codes, such as n01440764), as torchvision and everybody else number them.
"""

import hashlib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pipelines.convert.devkit import ARCHIVE, Devkit, find_devkit
from pipelines.convert.files import MAX_FILE_MB, listed
from pipelines.convert.folder import FolderSource
from pipelines.convert.label_files import read_label_file
from pipelines.convert.labels import LabelTable, apply_labels
from pipelines.convert.names import NameList
from pipelines.convert.parquet import ParquetSource
from pipelines.convert.protocol import Source
from pipelines.convert.relabelled import Relabelled, in_class_order
from pipelines.convert.tar import TarSource
from pipelines.system.terminal import printable

NUM_IMAGES = {"train": 1_281_167, "val": 50_000}
MD5 = {
    "ILSVRC2012_img_train.tar": "1d675b47d978889d74fa0da5fadfb00e",
    "ILSVRC2012_img_val.tar": "29b22e2961454d5413ddabcf34fc5622",
    ARCHIVE: "fa75699e90414af021442c21a62c3abf",
}
"""Sums of the archives that image-net.org offers, as torchvision has them."""
SYNSETS = "LOC_synset_mapping.txt"
SOLUTION = "LOC_val_solution.csv"

_WNID = re.compile(r"n\d{8}")
_WNID_OF_PATH = re.compile(r"(n\d{8})(?:\.\w+)?$")
"""Hugging Face's names end in the wnid: n01440764_10026_n01440764.JPEG."""
_MAPPING_LINE = re.compile(r"(n\d{8}) (.+)")


@dataclass(frozen=True)
class _Layout:
    """A way in which the images lie in the folder."""

    name: str
    paths: tuple[Path, ...]
    open: Callable[[], Source]


@dataclass(frozen=True)
class _Classes:
    """ImageNet's classes in the order of their numbers."""

    where: str
    """The file that lists them."""
    wnids: list[str]
    titles: list[str]


def open_imagenet(
    root: Path, split: str = "train", max_file_mb: int = MAX_FILE_MB, check: bool = False
) -> Source:
    """Open ImageNet in a folder, in whichever layout it is there.

    Args:
        root: the folder.
        split: "train" or "val" ("validation").
        max_file_mb: size limit of one image, in MB.
        check: compare the MD5 sums of the archives with the official ones first; that of the training images takes
            minutes.

    Raises:
        OSError: the folder, or a file in it, cannot be read.
        ValueError: there is no such layout in it, the labels of the validation images are missing or ambiguous, or
            an archive is corrupt or not the official one.
    """
    split = "val" if split == "validation" else split
    if split not in NUM_IMAGES:
        raise ValueError(f"ImageNet has no split {printable(split)!r}, only {' and '.join(NUM_IMAGES)}")
    if not root.is_dir():
        raise FileNotFoundError(
            f"{printable(root)}: no such folder; imagenet:DIR needs the folder that holds ImageNet"
        )
    layouts = _layouts(root, split, max_file_mb)
    if not layouts:
        raise _nothing_found(root, split)
    layout = layouts[0]
    if check:
        check_sums(layout, root)
    folders = [root, root.parent] if (root / "Data").is_dir() else [root]
    devkit = find_devkit(folders)
    classes = _find_classes(folders, devkit)
    images = layout.open()
    if isinstance(images, ParquetSource):
        source = _from_parquet(images, classes)
    elif images.class_names is not None:
        source = _from_class_folders(images, classes)
    elif split == "val":
        source = _flat_val(images, folders, devkit, classes)
    else:
        raise ValueError(
            f"{printable(layout.paths[0])}: no folders or tars of classes in it; ImageNet's training images lie in "
            "one per class"
        )
    source.kind, source.name = "imagenet", f"{split} ({layout.name})"
    if len(layouts) > 1:
        others = ", ".join(other.name for other in layouts[1:])
        source.remarks.append(f"read from {layout.name}; the folder also has {others}")
    if len(source.labels) != NUM_IMAGES[split]:
        source.remarks.append(
            f"{len(source.labels):,} images; ImageNet's {split} split has {NUM_IMAGES[split]:,}"
        )
    return source


def check_sums(layout: _Layout, root: Path) -> None:
    """Raise ValueError where an archive is not the official one, or there is none."""
    archives = [path for path in (*layout.paths, root / ARCHIVE) if path.name in MD5 and path.is_file()]
    if not archives:
        raise ValueError(
            f"--check knows the sums of {', '.join(MD5)}, and {printable(root)} holds {layout.name} instead; leave "
            "--check out"
        )
    for path in archives:
        with open(path, "rb") as file:
            found = hashlib.file_digest(file, "md5").hexdigest()
        if found != MD5[path.name]:
            raise ValueError(
                f"{printable(path)}: its MD5 sum is {found}, that of the official archive {MD5[path.name]}; download "
                "it again"
            )


def _layouts(root: Path, split: str, max_file_mb: int) -> list[_Layout]:
    """Return the layouts that are there, the one to read first."""
    found = []
    tar = root / f"ILSVRC2012_img_{split}.tar"
    if tar.is_file():
        found.append(
            _Layout(
                "archives", (tar,), partial(TarSource, [tar], max_file_mb, tars_are_classes=split == "train")
            )
        )
    for base in (root / "ILSVRC", root):
        kaggle = base / "Data" / "CLS-LOC" / split
        if kaggle.is_dir():
            found.append(_Layout("Kaggle's tree", (kaggle,), partial(FolderSource, kaggle, max_file_mb)))
    folder = root / split
    if folder.is_dir():
        class_tars = sorted(path for path in folder.glob("n*.tar") if _WNID.fullmatch(path.stem))
        if class_tars:
            found.append(
                _Layout(
                    "class tars",
                    tuple(class_tars),
                    partial(TarSource, class_tars, max_file_mb, tars_are_classes=True),
                )
            )
        else:
            found.append(_Layout("folders", (folder,), partial(FolderSource, folder, max_file_mb)))
    if shards := _shards(root, split):
        found.append(
            _Layout("parquet shards", tuple(shards), partial(ParquetSource, shards, max_file_mb=max_file_mb))
        )
    return found


def _shards(root: Path, split: str) -> list[Path]:
    """Return the Parquet files of a split, in order."""
    name = "train" if split == "train" else "val"
    for folder in (root, root / "data", root / "default"):
        if shards := sorted(folder.glob(f"{name}*.parquet")):
            return shards
        # as Hugging Face's converted branches have them: default/train/0000.parquet
        if shards := sorted(folder.glob(f"{name}*/*.parquet")):
            return shards
    return []


def _nothing_found(root: Path, split: str) -> ValueError:
    there = sorted(path.name for path in root.iterdir() if not path.name.startswith("."))
    return ValueError(
        f"{printable(root)}: no ImageNet for the split {split}; it needs ILSVRC2012_img_{split}.tar, Kaggle's "
        f"ILSVRC/Data/CLS-LOC/{split}, {split}/n… folders, or {split}*.parquet, and has "
        + (listed(there) or "nothing")
    )


def _find_classes(folders: Iterable[Path], devkit: Devkit | None) -> _Classes | None:
    """Return the classes that a file in one of the folders lists; None where there is none."""
    if devkit is not None:
        wnids = sorted(devkit.titles)
        return _Classes(devkit.path.name, wnids, [devkit.titles[wnid] for wnid in wnids])
    for folder in folders:
        path = folder / SYNSETS
        if path.is_file():
            return _read_mapping(path)
    return None


def _read_mapping(path: Path) -> _Classes:
    """Return the classes in Kaggle's table: `n01440764 tench, Tinca tinca`."""
    lines = path.read_text(encoding="utf-8", errors="backslashreplace").splitlines()
    titles: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        match = _MAPPING_LINE.fullmatch(line.strip())
        if not line.strip():
            continue
        if not match or match[1] in titles:
            what = "a class that an earlier line has" if match else "no class (n01440764 tench, Tinca tinca)"
            raise ValueError(f"{printable(path)}, line {number}: {what}; download it again")
        titles[match[1]] = match[2]
    if not titles:
        raise ValueError(f"{printable(path)}: empty; download it again")
    wnids = sorted(titles)
    return _Classes(path.name, wnids, [titles[wnid] for wnid in wnids])


def _from_class_folders(images: Source, classes: _Classes | None) -> Source:
    """Return images whose folders, or tars, are their classes."""
    assert images.class_names is not None
    if classes is None:
        return images
    return in_class_order(images, classes.wnids, classes.titles, classes.where)


def _flat_val(
    images: Source, folders: Iterable[Path], devkit: Devkit | None, classes: _Classes | None
) -> Source:
    """Return the validation images, which lie in no folders, with the labels of a file."""
    table = None
    for folder in folders:
        if devkit is None and table is None and (folder / SOLUTION).is_file():
            table = read_label_file(folder / SOLUTION)
    if devkit is not None:
        table = LabelTable(devkit.path.name, devkit.labels())
    if table is None:
        raise ValueError(
            f"the validation images have no labels: put {ARCHIVE} or Kaggle's {SOLUTION} into "
            f"{printable(next(iter(folders)))}"
        )
    if classes is None:
        return apply_labels(images, table)
    return apply_labels(images, table, classes.wnids, classes.titles)


def _from_parquet(images: ParquetSource, classes: _Classes | None) -> Source:
    """Return images whose labels are numbers, with the wnids that a file or the names of the images tell."""
    num_classes = len(images.class_names or []) or int(images.labels.max()) + 1
    if classes is None:
        wnids, titles = _wnids_of_names(images, num_classes), images.class_names
        if wnids is None:
            return images
    else:
        wnids, titles = classes.wnids, classes.titles
        if len(wnids) != num_classes:
            raise ValueError(
                f"{printable(images.name)} has {num_classes:,} classes and {classes.where} lists {len(wnids):,}; "
                "remove the file that belongs to another set"
            )
    return Relabelled(images, images.labels, wnids, titles)


def _wnids_of_names(images: ParquetSource, num_classes: int) -> list[str] | None:
    """Return the wnid of each class by the images' names; None where these do not tell them all."""
    found: dict[int, str] = {}
    names: NameList = images.image_names()
    for label, name in zip(images.labels.tolist(), names, strict=True):
        if label in found or label < 0:
            continue
        match = _WNID_OF_PATH.search(name)
        if not match:
            return None
        found[label] = match[1]
        if len(found) == num_classes:
            break
    wnids = [found.get(label, "") for label in range(num_classes)]
    return wnids if all(wnids) and wnids == sorted(set(wnids)) else None
