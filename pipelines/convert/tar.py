"""Images in uncompressed tar files, read in any order without unpacking."""

import os
import posixpath
import re
from collections import Counter
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import numpy as np

from pipelines.beton.layout import MAX_CLASSES
from pipelines.convert.files import (
    MAX_FILE_MB,
    SUFFIXES,
    check_file_size,
    ignored_files_note,
    is_junk,
    listed,
    no_images_error,
    read_range,
    reject_split_folders,
    suffix_of,
    unicode_name,
)
from pipelines.convert.tar_headers import Member, TarWalk
from pipelines.system.terminal import printable

Place = tuple[int, int, int]
"""Number of the tar, first byte, and bytes (−1: stored as a sparse file) of an image."""


@dataclass
class _Contents:
    """Contents of all tars together."""

    items: list[str] = field(default_factory=list)
    places: list[Place] = field(default_factory=list)
    """Place of each item."""
    labels: dict[tuple[int, str], int] = field(default_factory=dict)
    """Labels from `.cls` files: (number of the tar, key) → label."""
    links: list[tuple[int, str, str]] = field(default_factory=list)
    """Links with an image's name: number of the tar, name, target."""
    ignored: Counter[str] = field(default_factory=Counter)
    """Files that are no images, by suffix."""
    junk: set[str] = field(default_factory=set)
    """Names of hidden folders with images, and of those that systems create."""
    notes: list[str] = field(default_factory=list)


class TarSource:
    """One or several tars of class folders, of a flat folder, of one class each, or of WebDataset pairs.

    Where there are files `KEY.cls`, they hold the label of the image `KEY.jpg` (…) in decimal digits.  Where
    there are none, the folder of an image is its class, once the folders that all images share are taken
    off.  Several tars without folders that differ are a class each, by their names, unless they are
    numbered in a row, as shards are; else there are no labels.

    Args:
        paths: the tars; images are numbered in the order of the tars and of what is in them.
        max_file_mb: size limit of one image, in MB; larger ones fail when they are read.

    Raises:
        OSError: a file cannot be read.
        ValueError: a file is no tar, is compressed or truncated; there is no image in them; a label is
            missing or no number.
    """

    kind = "tar"

    def __init__(self, paths: list[Path], max_file_mb: int = MAX_FILE_MB) -> None:
        self.name = unicode_name(
            paths[0].name if len(paths) == 1 else f"{paths[0].name} and {len(paths) - 1} more"
        )
        self.class_names: list[str] | None = None
        self._paths, self._max_file_bytes = paths, max_file_mb * 10**6
        found = _Contents()
        for number, path in enumerate(paths):
            _read_index(number, path, found)
        notes = [f"ignored folders: {listed(sorted(found.junk))}"] if found.junk else []
        if not found.places:
            raise no_images_error(self.name, found.ignored, notes + found.notes)
        self.remarks = ignored_files_note(found.ignored) + notes + found.notes
        self._follow(found.links, found)
        if found.labels:
            self._keep_one_per_key(found)
        self._items, self._places = found.items, np.array(found.places)
        self.labels = self._paired(found.labels) if found.labels else self._from_folders()

    def item(self, index: int) -> str:
        item = unicode_name(self._items[index])
        if len(self._paths) == 1:
            return item
        # two shards may use the same key
        return f"{unicode_name(self._paths[self._places[index, 0]].name)}/{item}"

    def read(self, index: int) -> bytes:
        number, offset, size = self._places[index].tolist()
        if size < 0:
            raise ValueError(
                "the tar stores it as a sparse file, which is not read; pack it without --sparse"
            )
        check_file_size(size, self._max_file_bytes)
        # opened for each read, because a thousand shards exceed the number of files that a process may hold open
        data = read_range(self._paths[number], offset, size)
        if len(data) < size:
            raise OSError(f"{self._paths[number].name} is truncated")
        return data

    def _follow(self, links: list[tuple[int, str, str]], found: _Contents) -> None:
        """Append the images that are links to other images of the same tar."""
        if not links:
            return
        known = {
            (place[0], _clean(item)): place for place, item in zip(found.places, found.items, strict=True)
        }
        lost = 0
        for number, name, target in links:
            place = known.get((number, target))
            if place is None:
                lost += 1
                continue
            found.items.append(name)
            found.places.append(place)
            known[number, _clean(name)] = place  # for a link to a link
        if lost:
            self.remarks.append(f"ignored: {lost:,} links to what is no image of the same tar")

    def _keep_one_per_key(self, found: _Contents) -> None:
        """Keep `KEY.jpg` of a WebDataset sample with several images, and drop its other fields (`KEY.seg.png`)."""
        pairs = list(zip(found.places, found.items, strict=True))
        plain = {(place[0], _key(item)) for place, item in pairs if _is_plain(item)}
        kept = [(p, item) for p, item in pairs if _is_plain(item) or (p[0], _key(item)) not in plain]
        if len(kept) < len(pairs):
            self.remarks.append(f"ignored: {len(pairs) - len(kept):,} further images of samples")
        found.items = [item for _, item in kept]
        found.places = [place for place, _ in kept]

    def _paired(self, labels: dict[tuple[int, str], int]) -> np.ndarray:
        found = [
            labels.get((number, _key(item)))
            for number, item in zip(self._places[:, 0].tolist(), self._items, strict=True)
        ]
        if None in found:
            k = found.index(None)
            tar, item = self._paths[self._places[k, 0]], self._items[k]
            raise ValueError(
                f"{printable(tar)}: '{printable(item, 200)}' has no .cls file beside it; add it, or leave the image out"
            )
        self.remarks.append(f"labels from .cls files: {len(set(found)):,} classes")
        return np.array(found, np.int64)

    def _from_folders(self) -> np.ndarray:
        folders = [_parts(posixpath.dirname(item)) for item in self._items]
        shared = os.path.commonprefix(folders)  # noqa: RUF071 - of tuples of names, not of strings
        below = [parts[len(shared) : len(shared) + 1] for parts in folders]
        if not any(below):
            return self._from_tar_names()
        if not all(below):  # some images lie in the folder that all share
            raise ValueError(
                f"{printable(self.name)}: images lie beside folders of images, so it is not clear whether the folders "
                "are classes"
            )
        names = sorted({name for (name,) in below})
        reject_split_folders(self.name, names, "unpack it, and convert the folders one at a time")
        return self._numbered([name for (name,) in below], names, "folders")

    def _from_tar_names(self) -> np.ndarray:
        """Return labels from the tars' names where each tar is a class, as in ImageNet; otherwise no labels."""
        numbers = self._places[:, 0].tolist()
        stems = [path.name[:-4] if path.name.lower().endswith(".tar") else path.name for path in self._paths]
        if len(stems) == 1:
            self.remarks.append("no labels: no folders that differ, and no .cls files")
            return np.full(len(numbers), -1)
        if _are_shards(stems):
            self.remarks.append(
                "no labels: no folders that differ, no .cls files, and tars that are numbered in a row, like shards; "
                "if each is a class, unpack each into a folder named for its class"
            )
            return np.full(len(numbers), -1)
        if empty := [path.name for k, path in enumerate(self._paths) if k not in set(numbers)]:
            self.remarks.append(f"no classes, since no image is in these tars: {listed(empty)}")
        names = sorted({stems[k] for k in numbers})
        reject_split_folders(self.name, names, "convert them one at a time")
        return self._numbered([stems[k] for k in numbers], names, "the tars' names")

    def _numbered(self, found: list[str], names: list[str], where: str) -> np.ndarray:
        self.class_names = [unicode_name(name) for name in names]
        self.remarks.append(f"labels from {where}: {listed(names)}")
        number = {name: k for k, name in enumerate(names)}
        return np.array([number[name] for name in found], np.int64)


def _read_index(number: int, path: Path, found: _Contents) -> None:
    """Add the contents of a tar to `found`."""
    try:
        with open(path, "rb") as file:
            _read_members(number, path, file, found)
    except OSError as error:
        error.filename = error.filename or str(path)  # a read that fails does not name the file
        raise


def _read_members(number: int, path: Path, file: BinaryIO, found: _Contents) -> None:
    walk = TarWalk(file, path)
    for member in walk:
        folder, _, name = member.name.rpartition("/")
        is_image = name.lower().endswith(SUFFIXES)
        if name.startswith(".") or (junk := _junk_folder(folder)):
            if is_image and not name.startswith("."):
                found.junk.add(junk)
        elif member.kind in ("hard link", "symbolic link"):
            if is_image:
                found.links.append((number, member.name, _target(member)))
        elif member.kind != "file":
            if is_image:
                found.ignored["special file"] += 1
        elif is_image:
            found.items.append(member.name)
            found.places.append((number, member.offset, member.size))
        elif name.lower().endswith(".cls"):
            found.labels[number, _key(member.name)] = _label(file, path, member)
        else:
            found.ignored[suffix_of(name)] += 1
    if walk.num_archives > 1:
        found.notes.append(f"{printable(path.name)}: {walk.num_archives} archives in a row, all are read")
    if not walk.has_end_marker:
        found.notes.append(
            f"{printable(path.name)} has no end marker: it may have been truncated between two members"
        )


def _label(file: BinaryIO, path: Path, member: Member) -> int:
    file.seek(member.offset)
    text = file.read(min(max(member.size, 0), 32)).strip()
    if not text.isdigit() or int(text) >= MAX_CLASSES:
        raise ValueError(
            f"{printable(path)}: '{printable(member.name)}' holds {printable(text)}, no class number "
            f"(0 to {MAX_CLASSES - 1:,}); correct it, or pack the images in a folder per class"
        )
    return int(text)


def _are_shards(stems: list[str]) -> bool:
    """Whether names differ in one number only, and the numbers are consecutive: `train-0007`, `train-0008`."""
    found = [re.fullmatch(r"(.*?)(\d+)(\D*)", stem, re.DOTALL) for stem in stems]
    parts = [match.groups() for match in found if match]
    if len(parts) < len(stems) or len({(before, after) for before, _, after in parts}) > 1:
        return False
    if any(len(digits) > 18 for _, digits, _ in parts):
        return False
    numbers = {int(digits) for _, digits, _ in parts}
    return max(numbers) - min(numbers) < len(numbers)


def _target(member: Member) -> str:
    """Return the target of a link: a hard link holds a member's name, a symbolic link a path from its own folder."""
    base = "" if member.kind == "hard link" else str(PurePosixPath(member.name).parent)
    return _clean(posixpath.join(base, member.target))


def _clean(name: str) -> str:
    return posixpath.normpath(name)


@lru_cache(maxsize=4096)
def _junk_folder(folder: str) -> str:
    """Return the first folder of a path that is ignored; "" if there is none."""
    return next((part for part in _parts(folder) if is_junk(part)), "")


@lru_cache(maxsize=4096)
def _parts(folder: str) -> tuple[str, ...]:
    """Return the folders of a path, without leading "..", with which the paths in a tar of `../photos` begin."""
    return tuple(part for part in PurePosixPath(_clean(folder)).parts if part not in ("..", "/"))


def _key(name: str) -> str:
    """Return the key that the files of a WebDataset sample share: the path up to the first dot of the file's name."""
    folder, _, file = _clean(name).rpartition("/")
    return f"{folder}/{file.partition('.')[0]}"


def _is_plain(name: str) -> bool:
    return PurePosixPath(name).name.count(".") == 1
