"""Finds the images in tars, and in tars within tars, without unpacking one."""

import posixpath
from array import array
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from pipelines.convert.class_folders import Folder, clean, folder_parts, junk_folder
from pipelines.convert.files import SUFFIXES, suffix_of
from pipelines.convert.names import NameList
from pipelines.convert.pairs import SUFFIXES as LABEL_SUFFIXES
from pipelines.convert.pairs import PairLabels, sample_key
from pipelines.convert.tar_headers import Member, TarWalk
from pipelines.system.terminal import printable

MAX_DEPTH = 4
"""Tars within a tar within a tar … that are opened; ImageNet's has one level."""


@dataclass(frozen=True)
class Tar:
    """A tar file, or a tar that is a member of one."""

    path: Path
    inner: tuple[str, ...] = ()
    """Names of the members on the way to it; () for a file."""

    @property
    def name(self) -> str:
        """The name of the file, or of the member."""
        return PurePosixPath(self.inner[-1]).name if self.inner else self.path.name

    @property
    def stem(self) -> str:
        """The name without `.tar`: the class, where each tar is one."""
        return self.name[:-4] if self.name.lower().endswith(".tar") else self.name

    @property
    def folders(self) -> Folder:
        """Folders within the file that hold an inner tar; a tar around it counts as a folder."""
        folders: Folder = ()
        for depth, name in enumerate(self.inner):
            folders += folder_parts(posixpath.dirname(name))
            if depth < len(self.inner) - 1:
                folders += (PurePosixPath(name).stem,)
        return folders

    def __str__(self) -> str:
        return ": ".join([printable(self.path), *(f"'{printable(name, 200)}'" for name in self.inner)])


@dataclass
class TarContents:
    """Contents of all tars together; each image has an entry in `names`, `numbers`, `offsets` and `sizes`."""

    fields: PairLabels
    """What the files beside images say of their labels."""
    tars: list[Tar] = field(default_factory=list)
    holders: set[int] = field(default_factory=set)
    """Numbers of the tars that hold tars."""
    names: NameList = field(default_factory=NameList)
    numbers: array = field(default_factory=lambda: array("i"))
    """The tar that an image is in."""
    offsets: array = field(default_factory=lambda: array("q"))
    """First byte of an image in the file of its tar."""
    sizes: array = field(default_factory=lambda: array("q"))
    """Bytes of an image; −1: stored as a sparse file."""
    links: list[tuple[int, str, str]] = field(default_factory=list)
    """Links with an image's name: number of the tar, name, target."""
    ignored: Counter[str] = field(default_factory=Counter)
    """Files that are no images, by suffix."""
    junk: set[str] = field(default_factory=set)
    """Names of hidden folders with images, and of those that systems create."""
    notes: list[str] = field(default_factory=list)

    def add(self, name: str, number: int, offset: int, size: int) -> None:
        """Add an image."""
        self.names.append(name)
        self.numbers.append(number)
        self.offsets.append(offset)
        self.sizes.append(size)

    def follow_links(self) -> int:
        """Append the images that are links to other images of the same tar; return how many links lead nowhere."""
        if not self.links:
            return 0
        places = zip(self.numbers, self.offsets, self.sizes, strict=True)
        known = {(place[0], clean(name)): place for name, place in zip(self.names, places, strict=True)}
        lost = 0
        for number, name, target in self.links:
            place = known.get((number, target))
            if place is None:
                lost += 1
                continue
            self.add(name, *place)
            known[number, clean(name)] = place  # for a link to a link
        return lost


def read_tar(path: Path, found: TarContents) -> None:
    """Add the contents of a tar to `found`.

    Raises:
        OSError: it cannot be read.
        ValueError: it, or a tar in it, is no tar, is compressed or corrupt; a label file holds no label.
    """
    try:
        with open(path, "rb") as file:
            _read_members(Tar(path), file, 0, None, found)
    except OSError as error:
        error.filename = error.filename or str(path)  # a read that fails does not name the file
        raise


def _read_members(tar: Tar, file: BinaryIO, start: int, size: int | None, found: TarContents) -> None:
    number = len(found.tars)
    found.tars.append(tar)
    walk = TarWalk(file, tar.path, tar.inner, start, size)
    for member in walk:
        folder, _, name = member.name.rpartition("/")
        dot = name.rfind(".")
        suffix = name[dot:].lower() if dot > 0 else ""
        is_image = suffix in SUFFIXES
        if name.startswith(".") or (junk := junk_folder(folder)):
            if is_image and not name.startswith("."):
                found.junk.add(junk)
        elif member.kind in ("hard link", "symbolic link"):
            if is_image:
                found.links.append((number, member.name, _target(member)))
        elif member.kind != "file":
            if is_image:
                found.ignored["special file"] += 1
        elif is_image:
            found.add(member.name, number, member.offset, member.size)
        elif suffix == ".tar" and member.size >= 0 and len(tar.inner) < MAX_DEPTH:
            found.holders.add(number)
            inner = Tar(tar.path, (*tar.inner, member.name))
            _read_members(inner, file, member.offset, member.size, found)
        elif suffix in LABEL_SUFFIXES:
            key = (number, sample_key(member.name))
            where = f"{tar}: '{printable(member.name)}'"
            found.fields.take(key, suffix, member.size, partial(_content, file, member), where)
        else:
            found.ignored[suffix_of(name)] += 1
    if walk.num_archives > 1:
        found.notes.append(f"{_short(tar)}: {walk.num_archives} archives in a row, all are read")
    if not walk.has_end_marker:
        found.notes.append(f"{_short(tar)} has no end marker: it may have been truncated between two members")


def _short(tar: Tar) -> str:
    return ": ".join(printable(name) for name in (tar.path.name, *tar.inner))


def _content(file: BinaryIO, member: Member) -> bytes:
    file.seek(member.offset)
    return file.read(member.size)


def _target(member: Member) -> str:
    """Return the target of a link: a hard link holds a member's name, a symbolic link a path from its own folder."""
    base = "" if member.kind == "hard link" else str(PurePosixPath(member.name).parent)
    return clean(posixpath.join(base, member.target))
