"""Images in a folder, or in one folder per class."""

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from pipelines.convert.files import (
    MAX_FILE_MB,
    SPLIT_NAMES,
    SUFFIXES,
    ignored_files_note,
    is_junk,
    listed,
    no_images_error,
    read_file,
    reject_split_folders,
    suffix_of,
    unicode_name,
)
from pipelines.system.terminal import printable


@dataclass
class _Walk:
    """Findings below a folder; names are paths from the root."""

    images: list[str] = field(default_factory=list)
    """Includes dangling links with an image's name, so that they are reported when they are read."""
    unreadable: dict[str, OSError] = field(default_factory=dict)
    """Folders that cannot be listed."""
    dangling: list[str] = field(default_factory=list)
    """Other dangling links, and links to themselves."""
    ignored: Counter[str] = field(default_factory=Counter)
    """Files that are no images, by suffix."""
    junk: list[str] = field(default_factory=list)
    """Names of hidden folders, and of those that systems create."""

    @property
    def is_empty(self) -> bool:
        return not (self.images or self.unreadable or self.dangling or self.ignored)

    def take(self, entry: os.DirEntry, name: str) -> bool:
        """Note what an entry of a folder is; True where it is a folder to walk."""
        kind = _kind(entry)
        if kind == "folder":
            if not is_junk(entry.name):
                return True
            self.junk.append(entry.name)
        elif not entry.name.startswith("."):
            if kind == "image":
                self.images.append(name)
            elif kind == "dangling":
                self.dangling.append(name)
            else:
                self.ignored[suffix_of(entry.name) if kind == "file" else "special file"] += 1
        return False


class FolderSource:
    """A folder of images, or a folder with one folder of images per class, as torchvision's `ImageFolder` reads it.

    Labels are the positions of the class folders in sorted order.  Below a class folder, and below a folder
    without classes, images may lie at any depth.  Names that start with a dot are ignored, and so are
    folders that systems create (`__MACOSX`, `lost+found`).  An empty folder is a class without images, so
    that the labels of a training and a test folder mean the same; one that holds only other files is no class.

    Folders that cannot be listed, and dangling links, are items whose `read` fails.

    Raises:
        OSError: the folder cannot be listed.
        ValueError: there is no image in it, or it is not clear which folders are classes.
    """

    class_titles: list[str] | None = None
    sequential = False

    def __init__(self, root: Path, max_file_mb: int = MAX_FILE_MB) -> None:
        self.root, self.name = root, unicode_name(root.resolve().name)
        self._max_file_bytes = max_file_mb * 10**6
        top = _Walk()
        with os.scandir(root) as entries:
            folders = sorted(entry.name for entry in entries if top.take(entry, entry.name))
        walks = {folder: _walk(root, folder) for folder in folders}
        found = [top, *walks.values()]
        ignored = sum((walk.ignored for walk in found), Counter())
        self._unreadable = {name: error for walk in found for name, error in walk.unreadable.items()}
        self.remarks = ignored_files_note(ignored) + self._notes(found)
        populated = [folder for folder in folders if walks[folder].images]
        if top.images and populated:
            raise ValueError(
                f"{printable(root)}: {len(top.images)} images lie beside {len(populated)} folders of images "
                f"({listed(populated)}), so it is not clear whether the folders are classes; move some of them"
            )
        if not top.images and not populated:
            raise no_images_error(str(root), ignored, self.remarks[bool(ignored) :])
        self.class_names: list[str] | None = None
        if populated:
            self._reject_wrong_level(populated, walks)
            self._take_classes(walks)
        else:
            self.kind = "flat folder"
            self._items = sorted(top.images) + sorted(self._unreadable)
            self.labels = np.full(len(self._items), -1)

    def item(self, index: int) -> str:
        return unicode_name(self._items[index])

    def read(self, index: int) -> bytes:
        item = self._items[index]
        if self._unreadable and item in self._unreadable:
            error = self._unreadable[item]
            raise OSError(error.errno, error.strerror, error.filename)
        return read_file(f"{self.root}/{item}", self._max_file_bytes)

    def _take_classes(self, walks: dict[str, _Walk]) -> None:
        """Number the class folders, and note which folders are no classes or have no images."""
        empty = [folder for folder, walk in walks.items() if walk.is_empty]
        others = [
            folder for folder, walk in walks.items() if (walk.ignored or walk.dangling) and not walk.images
        ]
        others = [folder for folder in others if not walks[folder].unreadable]
        classes = [folder for folder in walks if folder not in set(others)]
        if empty:
            self.remarks.append(f"classes without images, since their folders are empty: {listed(empty)}")
        if others:
            self.remarks.append(f"no classes, since no image is in these folders: {listed(others)}")
        items = {name: sorted([*walks[name].images, *walks[name].unreadable]) for name in classes}
        self.kind, self.class_names = "class folders", [unicode_name(name) for name in classes]
        self._items = [item for name in classes for item in items[name]]
        self.labels = np.repeat(np.arange(len(classes)), [len(items[name]) for name in classes])

    def _reject_wrong_level(self, populated: list[str], walks: dict[str, _Walk]) -> None:
        """Raise ValueError where the class folders seem to lie further down."""
        splits = [name for name in populated if name.lower() in SPLIT_NAMES]
        if splits:
            first = min(splits, key=lambda name: SPLIT_NAMES.index(name.lower()))
            remedy = f"convert them one at a time: {printable(self.root / first)}"
            reject_split_folders(str(self.root), populated, remedy)
        images = walks[populated[0]].images
        if len(populated) > 1 or any(image.count("/") == 1 for image in images):
            return
        shared = os.path.commonprefix([image.split("/")[:-1] for image in images])  # noqa: RUF071 - of lists
        below = {image.split("/")[len(shared)].lower() for image in images}
        split = next((name for name in SPLIT_NAMES if name in below), None)
        if split:  # in the spelling that the folder has
            at = len(shared)
            shared = next(i.split("/")[: at + 1] for i in images if i.split("/")[at].lower() == split)
        raise ValueError(
            f"{printable(self.root)}: all images lie deeper in its only folder with images, "
            f"'{printable(populated[0])}', which is thus no class; give the folder that holds the class folders: "
            f"{printable(self.root.joinpath(*shared))}"
        )

    @staticmethod
    def _notes(found: list[_Walk]) -> list[str]:
        """Return notes on links and folders that were ignored, one for each kind."""
        junk = sorted({name for walk in found for name in walk.junk})
        dangling = [name for walk in found for name in walk.dangling]
        unreadable = [
            f"'{printable(name, 80)}' ({error.strerror})"
            for walk in found
            for name, error in walk.unreadable.items()
        ]
        notes = []
        if junk:
            notes.append(f"ignored folders: {listed(junk)}")
        if dangling:
            notes.append(f"ignored, links that lead nowhere: {listed(dangling)}")
        if unreadable:
            notes.append(
                f"folders that cannot be read: {', '.join(unreadable[:3])}{' …' if unreadable[3:] else ''}"
            )
        return notes


def _kind(entry: os.DirEntry) -> Literal["folder", "image", "file", "dangling", "special"]:
    """Return the kind of an entry; whether a file or a dangling link is an image is decided by its name."""
    try:
        if entry.is_dir():
            return "folder"
        is_file = entry.is_file()
    except OSError:  # a link to itself, or to a place that may not be read
        is_file = False
    has_image_name = entry.name.lower().endswith(SUFFIXES)
    if is_file:
        return "image" if has_image_name else "file"
    if entry.is_symlink() and not os.path.exists(entry.path):
        return "image" if has_image_name else "dangling"
    return "special"  # a pipe (reading it could wait for ever), a socket or a device


def _walk(root: Path, folder: str) -> _Walk:
    """Find the images in a folder, at any depth; links to folders are followed, except to a folder above."""
    found = _Walk()
    status = os.stat(root)
    seen = {(status.st_dev, status.st_ino)}
    pending = [folder]
    while pending:
        name = pending.pop()
        path = f"{root}/{name}"
        try:
            status = os.stat(path)
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(path) as entries:
                for entry in entries:
                    if found.take(entry, f"{name}/{entry.name}"):
                        pending.append(f"{name}/{entry.name}")
        except OSError as error:  # no permission, path too long, or the folder was just removed
            found.unreadable[name] = error
    return found
