"""Images in zip files, read in any order without unpacking."""

import posixpath
import stat
import struct
import zipfile
import zlib
from array import array
from collections import Counter
from pathlib import Path, PurePosixPath

import numpy as np

from pipelines.convert.class_folders import classes_of_folders, folder_parts, junk_folder
from pipelines.convert.files import (
    MAX_FILE_MB,
    SUFFIXES,
    check_file_size,
    ignored_files_note,
    listed,
    no_images_error,
    read_range,
    suffix_of,
    unicode_name,
)
from pipelines.convert.names import NameList
from pipelines.system.terminal import printable

_LOCAL_HEADER = struct.Struct("<4s22xHH")
"""Signature, and the lengths of the name and of the extra field that stand before a member's bytes."""
_SIGNATURE = b"PK\x03\x04"
_STORED, _DEFLATED = 0, 8
_ENCRYPTED = 1
"""Bit of a member's flags."""
_MADE_ON_DOS = 0


class ZipSource:
    """One or several zips of class folders, or of images without.

    The folder of an image is its class, once the folders that all images share are taken off.  Members that are
    encrypted, or whose names lead out of the archive, fail when they are read.

    Args:
        paths: the zips; images are numbered in the order of the zips and of their tables of contents.
        max_file_mb: size limit of one image, in MB; larger ones fail when they are read.

    Raises:
        OSError: a file cannot be read.
        ValueError: a file is no zip or is corrupt; there is no image in them, or it is not clear which folders are
            classes.
    """

    kind = "zip"

    def __init__(self, paths: list[Path], max_file_mb: int = MAX_FILE_MB) -> None:
        self.name = unicode_name(
            paths[0].name if len(paths) == 1 else f"{paths[0].name} and {len(paths) - 1} more"
        )
        self.class_names: list[str] | None = None
        self._paths, self._max_file_bytes = paths, max_file_mb * 10**6
        self._names = NameList()
        # number of the zip, first byte of the local header, bytes in the zip and unpacked, checksum, method
        rows = array("q")
        self._faults: dict[int, str] = {}
        ignored: Counter[str] = Counter()
        junk: set[str] = set()
        for number, path in enumerate(paths):
            for member in _members(path):
                self._take(number, member, rows, ignored, junk)
        notes = [f"ignored folders: {listed(sorted(junk))}"] if junk else []
        if not len(self._names):
            raise no_images_error(self.name, ignored, notes)
        self.remarks = ignored_files_note(ignored) + notes
        self._rows = np.array(rows).reshape(-1, 6)
        self.labels = self._from_folders()
        if repeated := self._names.num_repeated(self._rows[:, 0]):
            self.remarks.append(f"{repeated:,} images have the name of an earlier one; all are taken")

    def item(self, index: int) -> str:
        item = unicode_name(self._names[index])
        return item if len(self._paths) == 1 else f"{unicode_name(self._path(index).name)}/{item}"

    def read(self, index: int) -> bytes:
        if index in self._faults:
            raise ValueError(self._faults[index])
        _, offset, packed, size, checksum, method = self._rows[index].tolist()
        check_file_size(max(packed, size), self._max_file_bytes)
        path = self._path(index)
        header = read_range(path, offset, _LOCAL_HEADER.size)
        if len(header) < _LOCAL_HEADER.size or header[:4] != _SIGNATURE:
            raise ValueError(
                "the zip has no such file where its table of contents says; copy or download it again"
            )
        _, name_length, extra_length = _LOCAL_HEADER.unpack(header)
        data = read_range(path, offset + _LOCAL_HEADER.size + name_length + extra_length, packed)
        if len(data) < packed:
            raise OSError(f"{path.name} is truncated")
        if method == _DEFLATED:
            try:
                data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, size + 1)
            except zlib.error as error:
                raise ValueError(f"corrupt in the zip ({error})") from None
        if len(data) != size or zlib.crc32(data) != checksum:
            raise ValueError("corrupt in the zip: its bytes are not those that were packed (checksum)")
        return data

    def _path(self, index: int) -> Path:
        return self._paths[self._rows[index, 0]]

    def _take(
        self, number: int, member: zipfile.ZipInfo, rows: array, ignored: Counter[str], junk: set[str]
    ) -> None:
        """Note what a member of a zip is."""
        name = member.filename.replace("\\", "/") if member.create_system == _MADE_ON_DOS else member.filename
        folder, _, file = name.rpartition("/")
        if not file or file.startswith("."):
            return
        is_image = posixpath.splitext(file)[1].lower() in SUFFIXES
        if is_junk := junk_folder(folder):
            if is_image:
                junk.add(is_junk)
        elif not is_image:
            ignored[suffix_of(file)] += 1
        elif stat.S_ISLNK(member.external_attr >> 16):
            ignored["special file"] += 1
        else:
            if ".." in PurePosixPath(name).parts or name.startswith("/"):
                self._faults[len(self._names)] = "its name leads out of the zip"
            elif member.flag_bits & _ENCRYPTED:
                self._faults[len(self._names)] = (
                    "encrypted; unpack the zip with its password, and give the folder"
                )
            elif member.compress_type not in (_STORED, _DEFLATED):
                self._faults[len(self._names)] = (
                    f"packed by method {member.compress_type}, which is not read; pack it with deflate, or not at all"
                )
            self._names.append(name)
            rows.extend(
                (
                    *(number, member.header_offset, member.compress_size, member.file_size),
                    *(member.CRC, member.compress_type),
                )
            )

    def _from_folders(self) -> np.ndarray:
        known: dict[str, int] = {}
        which = np.fromiter(
            (known.setdefault(posixpath.dirname(name), len(known)) for name in self._names), np.int64
        )
        found = classes_of_folders(self.name, [folder_parts(folder) for folder in known], which)
        if found is None:
            self.remarks.append("no labels: no folders that differ")
            return np.full(len(which), -1)
        self.class_names = [unicode_name(name) for name in found[0]]
        self.remarks.append(f"labels from folders: {listed(found[0])}")
        return found[1]


def is_zip(path: Path) -> bool:
    """Whether a file is meant for a zip: by its suffix, or by its first bytes."""
    if path.suffix.lower() == ".zip":
        return True
    if path.suffix.lower() in (".npz", ".pt", ".pth"):  # also zips, of arrays
        return False
    with open(path, "rb") as file:
        return file.read(4) == _SIGNATURE


def _members(path: Path) -> list[zipfile.ZipInfo]:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.infolist()
    # of a corrupt table of contents zipfile raises what its parser runs into
    except (
        zipfile.BadZipFile,
        NotImplementedError,
        ValueError,
        struct.error,
        OverflowError,
        IndexError,
    ) as error:
        reason = printable(" ".join(str(error).split()), 200)
        raise ValueError(
            f"{printable(path)}: no zip, or corrupt ({reason}); copy or download it again"
        ) from error
