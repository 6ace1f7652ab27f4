"""Images in uncompressed tar files, read in any order without unpacking."""

import os
import posixpath
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np

from pipelines.convert.sources import SUFFIXES, no_image, passed_over, refuse_parts, suffix_of

_COMPRESSED = {b"\x1f\x8b": "gunzip", b"BZh": "bunzip2", b"\xfd7zXZ": "unxz", b"\x28\xb5\x2f\xfd": "unzstd"}


class TarSource:
    """One or several tars of class folders, of a flat folder, or of WebDataset pairs.

    Where there are files `KEY.cls`, they hold the label of the image `KEY.jpg` (…) in decimal digits.  Where
    there are none, the folder of an image is its class, once the folders that all images share are taken
    off; without folders that differ there are no labels.

    Args:
        paths: the tars; images are numbered in the order of the tars and of what is in them.

    Raises:
        OSError: a file cannot be read.
        ValueError: a file is no tar, is compressed or cut short; there is no image in them; a label is
            missing or no number.
    """

    kind = "tar"

    def __init__(self, paths: list[Path]) -> None:
        self.name = paths[0].name if len(paths) == 1 else f"{paths[0].name} and {len(paths) - 1} more"
        self.class_names: list[str] | None = None
        self._paths = paths
        self._items: list[str] = []
        places: list[tuple[int, int, int]] = []
        labels: dict[tuple[int, str], int] = {}
        others: Counter[str] = Counter()
        links: list[tuple[int, str, str]] = []
        for number, path in enumerate(paths):
            for member in self._members(path):
                if _hidden(member.name):
                    continue
                if member.islnk() or member.issym():
                    if member.name.lower().endswith(SUFFIXES):
                        links.append((number, member.name, _target(member)))
                    continue
                if member.name.lower().endswith(SUFFIXES):
                    self._items.append(member.name)
                    places.append((number, member.offset_data, member.size))
                elif member.name.lower().endswith(".cls"):
                    text = self._read(number, member.offset_data, min(member.size, 32))
                    if not text.strip().isdigit() or len(text) > 10:
                        raise ValueError(f"{path}: {member.name} holds {text!r}, no class number")
                    labels[number, _key(member.name)] = int(text)
                else:
                    others[suffix_of(member.name)] += 1
        if not places:
            raise no_image(self.name, others)
        self.remarks = passed_over(others)
        self._follow(links, places)
        if labels:
            places = self._one_per_key(places)
        self._places = np.array(places)
        self.labels = self._paired(labels) if labels else self._from_folders()

    def _members(self, path: Path) -> Iterator[tarfile.TarInfo]:
        """The ordinary files of a tar, and its links."""
        with open(path, "rb") as file:
            start, end = file.read(8), file.seek(0, 2)
        for magic, remedy in _COMPRESSED.items():
            if start.startswith(magic):
                raise ValueError(
                    f"{path}: is compressed, which allows no access in any order; {remedy} it first"
                )
        try:
            with tarfile.open(path, "r:") as tar:
                while member := tar.next():
                    tar.members.clear()  # type: ignore[attr-defined] # of a million members, tarfile would keep a gigabyte
                    if member.islnk() or member.issym():
                        yield member
                    elif member.isreg() and not member.issparse():
                        if member.offset_data + member.size > end:
                            raise tarfile.ReadError(f"it ends within {member.name}")
                        yield member
                # tarfile takes a damaged header for the end; at the real one there are zeros
                with open(path, "rb") as file:
                    file.seek(tar.offset)
                    rest = file.read(tarfile.BLOCKSIZE)
                if rest.strip(b"\0") or 0 < len(rest) < tarfile.BLOCKSIZE:
                    raise tarfile.ReadError(f"at byte {tar.offset} there is no header of a file")
        except tarfile.TarError as error:
            raise ValueError(f"{path}: no tar file, or a damaged one ({error})") from error

    def _follow(self, links: list[tuple[int, str, str]], places: list[tuple[int, int, int]]) -> None:
        """Add the images that are links to others, behind those; one tar's links stay within it."""
        if not links:
            return
        known = {(place[0], _clean(item)): place for place, item in zip(places, self._items, strict=True)}
        lost = 0
        for number, name, target in links:
            place = known.get((number, target))
            if place is None:
                lost += 1
                continue
            self._items.append(name)
            places.append(place)
            known[number, _clean(name)] = place  # of a link to a link
        if lost:
            self.remarks.append(f"passed over: {lost:,} links to what is no image of the same tar")

    def _one_per_key(self, places: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
        """Of a WebDataset sample with several images take `KEY.jpg`, and not its other fields, `KEY.seg.png`."""
        found = list(zip(places, self._items, strict=True))
        plain = {(place[0], _key(item)) for place, item in found if _is_plain(item)}
        kept = [(p, item) for p, item in found if _is_plain(item) or (p[0], _key(item)) not in plain]
        if len(kept) < len(found):
            self.remarks.append(f"passed over: {len(found) - len(kept):,} further images of samples")
        self._items = [item for _, item in kept]
        return [place for place, _ in kept]

    def _paired(self, labels: dict[tuple[int, str], int]) -> np.ndarray:
        found = [
            labels.get((place[0], _key(item))) for place, item in zip(self._places, self._items, strict=True)
        ]
        if None in found:
            k = found.index(None)
            raise ValueError(
                f"{self._paths[self._places[k, 0]]}: {self._items[k]} has no .cls file beside it"
            )
        return np.array(found, np.int64)

    def _from_folders(self) -> np.ndarray:
        folders = [_parts(item)[:-1] for item in self._items]
        shared = os.path.commonprefix(folders)  # noqa: RUF071 - of tuples of names, not of strings
        below = [parts[len(shared) : len(shared) + 1] for parts in folders]
        if not all(below):  # some images lie in the folder that all share: no classes
            if any(below):
                raise ValueError(
                    f"{self.name}: images lie beside folders of images, so it is not clear whether the folders are "
                    "classes"
                )
            return np.full(len(below), -1)
        self.class_names = sorted({name for (name,) in below})
        refuse_parts(self.name, self.class_names)
        number = {name: k for k, name in enumerate(self.class_names)}
        return np.array([number[name] for (name,) in below])

    def item(self, index: int) -> str:
        if len(self._paths) == 1:
            return self._items[index]
        return f"{self._paths[self._places[index, 0]].name}/{self._items[index]}"  # keys repeat from shard to shard

    def read(self, index: int) -> bytes:
        return self._read(*self._places[index].tolist())

    def _read(self, number: int, offset: int, size: int) -> bytes:
        # opened each time: a set of a thousand shards would take more open files than a process may have
        with open(self._paths[number], "rb", buffering=0) as file:
            file.seek(offset)
            data = file.read(size)
        if len(data) < size:
            raise OSError(f"{self._paths[number].name} is cut short")
        return data


def _target(member: tarfile.TarInfo) -> str:
    """The member that a link means: a hard link has its name, a symbolic one the way from its folder."""
    base = "" if member.islnk() else str(PurePosixPath(member.name).parent)
    return _clean(posixpath.join(base, member.linkname))


def _clean(name: str) -> str:
    return posixpath.normpath(name)


def _hidden(name: str) -> bool:
    return any(part.startswith(".") for part in _parts(name))


def _parts(name: str) -> tuple[str, ...]:
    """Folders and file, without the way up that a tar of `../photos` begins with."""
    return tuple(part for part in PurePosixPath(_clean(name)).parts if part != "..")


def _key(name: str) -> str:
    """What pairs the files of a WebDataset sample: the path up to the first dot of the file's name."""
    folder, _, file = _clean(name).rpartition("/")
    return f"{folder}/{file.partition('.')[0]}"


def _is_plain(name: str) -> bool:
    return PurePosixPath(name).name.count(".") == 1
