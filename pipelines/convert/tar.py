"""Images in uncompressed tar files, and in tars within them, read in any order without unpacking."""

import re
from array import array
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from pipelines.convert.class_folders import classes_of_folders, folder_parts
from pipelines.convert.files import (
    MAX_FILE_MB,
    check_file_size,
    ignored_files_note,
    listed,
    no_images_error,
    read_range,
    reject_split_folders,
    unicode_name,
)
from pipelines.convert.names import NameList
from pipelines.convert.pairs import Key, PairLabels, sample_key
from pipelines.convert.tar_index import TarContents, read_tar
from pipelines.system.terminal import printable


class TarSource:
    """One or several tars of class folders, of a flat folder, of one class each, of WebDataset pairs, or of tars.

    A tar that is a member of another one is read where it lies, as if it had been given itself.

    Where there are files `KEY.cls`, they hold the label of the image `KEY.jpg` (…) in decimal digits; so may
    `.json` or `.txt` files (`PairLabels`).  Where there are none, the folder of an image is its class, once the
    folders that all images share are taken off.  Several tars without folders that differ are a class each, by
    their names, unless they are numbered in a row, as shards are; else there are no labels.

    Args:
        paths: the tars; images are numbered in the order of the tars and of what is in them.
        max_file_mb: size limit of one image, in MB; larger ones fail when they are read.
        label_field: which files beside the images hold the labels: "cls", "txt", "json" or "json.KEY"; None: those
            that are there.
        tars_are_classes: each tar is a class where there are no folders that differ, also if they are numbered in a
            row, or there is only one within another tar.
        held: has a file at its path while a block runs: files of other machines are not always there.

    Raises:
        OSError: a file cannot be read.
        ValueError: a file is no tar, is compressed or truncated; there is no image in them; a label is
            missing or no number.
    """

    kind = "tar"
    class_titles: list[str] | None = None
    sequential = False

    def __init__(
        self,
        paths: list[Path],
        max_file_mb: int = MAX_FILE_MB,
        label_field: str | None = None,
        held: Callable[[Path], AbstractContextManager[Any]] = nullcontext,
        tars_are_classes: bool = False,
    ) -> None:
        self.name = unicode_name(
            paths[0].name if len(paths) == 1 else f"{paths[0].name} and {len(paths) - 1} more"
        )
        self.class_names: list[str] | None = None
        self._max_file_bytes = max_file_mb * 10**6
        found = TarContents(PairLabels(label_field))
        self._held, self._tars_are_classes = held, tars_are_classes
        for path in paths:
            with held(path):
                read_tar(path, found)
        notes = [f"ignored folders: {listed(sorted(found.junk))}"] if found.junk else []
        if not len(found.names):
            raise no_images_error(self.name, found.ignored + found.fields.ignored(""), notes + found.notes)
        lost = found.follow_links()
        chosen = found.fields.choose(_keys(found.numbers, found.names))
        self.remarks = ignored_files_note(found.ignored + found.fields.ignored(chosen)) + notes + found.notes
        if lost:
            self.remarks.append(f"ignored: {lost:,} links to what is no image of the same tar")
        self._tars, self._names = found.tars, found.names
        self._numbers = np.array(found.numbers)
        self._places = np.array([found.offsets, found.sizes])
        self._prefixes = [self._prefix(number, len(paths)) for number in range(len(self._tars))]
        if chosen:
            self._keep_one_per_key()
            self.labels = self._paired(found.fields, chosen)
        else:
            self.labels = self._from_folders(found.holders)
        if repeated := self._names.num_repeated(self._numbers):
            self.remarks.append(f"{repeated:,} images have the name of an earlier one; all are taken")

    def item(self, index: int) -> str:
        return self._prefixes[self._numbers[index]] + unicode_name(self._names[index])

    def read(self, index: int) -> bytes:
        offset, size = self._places[:, index].tolist()
        if size < 0:
            raise ValueError(
                "the tar stores it as a sparse file, which is not read; pack it without --sparse"
            )
        check_file_size(size, self._max_file_bytes)
        # opened for each read, because a thousand shards exceed the number of files that a process may hold open
        path = self._tars[self._numbers[index]].path
        with self._held(path):
            data = read_range(path, offset, size)
        if len(data) < size:
            raise OSError(f"{path.name} is truncated")
        return data

    def _prefix(self, number: int, num_paths: int) -> str:
        """Return the prefix of the names of a tar's images: two shards may use the same key."""
        tar = self._tars[number]
        names = [*([tar.path.name] if num_paths > 1 else []), *tar.inner]
        return "".join(f"{unicode_name(name)}/" for name in names)

    def _keep_one_per_key(self) -> None:
        """Keep `KEY.jpg` of a WebDataset sample with several images, and drop its other fields (`KEY.seg.png`)."""
        is_plain = np.fromiter(map(_is_plain, self._names), bool, len(self._names))
        plain = {
            key for key, is_one in zip(_keys(self._numbers, self._names), is_plain, strict=True) if is_one
        }
        keep = is_plain | [key not in plain for key in _keys(self._numbers, self._names)]
        if keep.all():
            return
        self.remarks.append(f"ignored: {np.count_nonzero(~keep):,} further images of samples")
        self._names = self._names.selected(keep)
        self._numbers, self._places = self._numbers[keep], self._places[:, keep]

    def _paired(self, fields: PairLabels, chosen: str) -> np.ndarray:
        def where(index: int) -> str:
            return f"{self._tars[self._numbers[index]]}: '{printable(self._names[index], 200)}'"

        self.class_names, labels = fields.labels(chosen, _keys(self._numbers, self._names), where)
        self.remarks.append(f"labels from {chosen} files: {len(np.unique(labels)):,} classes")
        return labels

    def _from_folders(self, holders: set[int]) -> np.ndarray:
        known: dict[tuple[int, str], int] = {}
        which = np.fromiter(
            (
                known.setdefault((number, name.rpartition("/")[0]), len(known))
                for number, name in zip(_whole(self._numbers), self._names, strict=True)
            ),
            np.int64,
        )
        folders = [self._tars[number].folders + folder_parts(folder) for number, folder in known]
        found = classes_of_folders(self.name, folders, which)
        if found is None:
            return self._from_tar_names(holders)
        names, labels = found
        self._take_names(names, "folders")
        return labels

    def _from_tar_names(self, holders: set[int]) -> np.ndarray:
        """Return labels from the tars' names where each tar is a class, as in ImageNet; otherwise no labels."""
        filled = set(np.unique(self._numbers).tolist())
        # a tar of tars is no class
        stems = {k: tar.stem for k, tar in enumerate(self._tars) if k in filled or k not in holders}
        if len(stems) == 1 and not (self._tars_are_classes and len(self._tars) > 1):
            self.remarks.append("no labels: no folders that differ, and no .cls files")
            return np.full(len(self._numbers), -1)
        if _are_shards(list(stems.values())) and not self._tars_are_classes:
            self.remarks.append(
                "no labels: no folders that differ, no .cls files, and tars that are numbered in a row, like shards; "
                "if each is a class, unpack each into a folder named for its class"
            )
            return np.full(len(self._numbers), -1)
        if empty := [self._tars[k].name for k in stems if k not in filled]:
            self.remarks.append(f"no classes, since no image is in these tars: {listed(empty)}")
        names = sorted({stems[k] for k in filled})
        reject_split_folders(self.name, names, "convert them one at a time")
        self._take_names(names, "the tars' names")
        position = {name: k for k, name in enumerate(names)}
        label_of_tar = np.full(len(self._tars), -1)
        for k in filled:
            label_of_tar[k] = position[stems[k]]
        return label_of_tar[self._numbers]

    def _take_names(self, names: list[str], where: str) -> None:
        self.class_names = [unicode_name(name) for name in names]
        self.remarks.append(f"labels from {where}: {listed(names)}")


def _keys(numbers: np.ndarray | array, names: NameList) -> Iterator[Key]:
    for number, name in zip(_whole(numbers), names, strict=True):
        yield number, sample_key(name)


def _whole(numbers: np.ndarray | array) -> Iterator[int]:
    """Yield Python's integers without a list of them, which would take 36 bytes for each."""
    return iter(memoryview(numbers))  # type: ignore[arg-type]


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


def _is_plain(name: str) -> bool:
    return PurePosixPath(name).name.count(".") == 1
