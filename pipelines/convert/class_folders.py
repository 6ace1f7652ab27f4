"""Finds the classes of images in an archive by their folders."""

import os
import posixpath
from collections.abc import Sequence
from functools import lru_cache
from pathlib import PurePosixPath

import numpy as np

from pipelines.convert.files import is_junk, reject_split_folders
from pipelines.system.terminal import printable

Folder = tuple[str, ...]
"""A path, part by part."""


def classes_of_folders(
    where: str, folders: Sequence[Folder], numbers: np.ndarray
) -> tuple[list[str], np.ndarray] | None:
    """Return class names, sorted, and the label of each image; None where all images lie in one folder.

    The folders that all images share are taken off; the first one below them is an image's class.

    Args:
        where: the archive, for errors.
        folders: the different folders.
        numbers: int [N], the folder of each image.

    Raises:
        ValueError: images lie beside folders of images, or the folders are splits of a data set.
    """
    used = sorted(set(numbers.tolist()))
    shared = len(os.path.commonprefix([folders[k] for k in used]))  # noqa: RUF071 - of tuples, not of strings
    below = {k: folders[k][shared : shared + 1] for k in used}
    if not any(below.values()):
        return None
    if not all(below.values()):  # some images lie in the folder that all share
        raise ValueError(
            f"{printable(where)}: images lie beside folders of images, so it is not clear whether the folders "
            "are classes"
        )
    names = sorted({name for (name,) in below.values()})
    reject_split_folders(where, names, "unpack it, and convert the folders one at a time")
    label = {name: k for k, name in enumerate(names)}
    label_of_folder = np.full(len(folders), -1)
    label_of_folder[used] = [label[below[k][0]] for k in used]
    return names, label_of_folder[numbers]


@lru_cache(maxsize=4096)
def folder_parts(folder: str) -> Folder:
    """Return the folders of a path, without leading "..", with which the paths in a tar of `../photos` begin."""
    return tuple(part for part in PurePosixPath(clean(folder)).parts if part not in ("..", "/"))


@lru_cache(maxsize=4096)
def junk_folder(folder: str) -> str:
    """Return the first folder of a path that is ignored; "" if there is none."""
    return next((part for part in folder_parts(folder) if is_junk(part)), "")


def clean(name: str) -> str:
    """Return a name without `./` and `x/../`."""
    return posixpath.normpath(name)
