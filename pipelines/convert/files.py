"""Decides which files and folders count as images, classes and splits, and words the notes and errors about it."""

import os
from collections import Counter
from collections.abc import Collection, Iterable

from pipelines.system.terminal import printable

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
"""Suffixes of image files, in upper or lower case."""
SPLIT_NAMES = ("train", "training", "val", "valid", "validation", "test")
"""Names of folders that hold a split of a data set and are no classes."""
JUNK_FOLDERS = frozenset(
    ("__macosx", "lost+found", "@eadir", "$recycle.bin", "system volume information", "__pycache__")
)
"""Lower-case names of folders that systems and tools create; images in them are thumbnails, no part of a set."""
LABEL_SUFFIXES = (".cls", ".csv", ".json", ".jsonl", ".tsv", ".txt", ".xml")
"""Suffixes of files that often hold labels or captions."""
MAX_FILE_MB = 256
"""Default size limit of one source image, in MB (10⁶ bytes); photos have 0.1 to 50."""
SHOWN = 5
"""Maximum number of names that a note lists."""
_CONTAINERS = {
    (
        ".tar",
    ): "tars in it are not opened: give those, all at once (a class each, if their images lie in no folder), "
    "or unpack each into a folder named for its class",
    (".zip",): "zips in it are not opened: give those, all at once",
    (
        ".gz",
        ".tgz",
        ".bz2",
        ".xz",
        ".zst",
    ): "compressed files are not opened: gunzip (bunzip2, unxz, unzstd) tars, and give those",
    (".parquet",): "Parquet files that lie deeper are not opened: give those, all at once",
    (
        ".mdb",
        ".lmdb",
        ".h5",
        ".hdf5",
        ".tfrecord",
        ".arrow",
        ".npy",
        ".npz",
        ".pkl",
        ".rec",
    ): "data bases and arrays "
    "are not read: write their images to files, one folder per class, or to Parquet with columns image and label",
}
"""Suffixes of files that may hold images, and what to do with them."""

_READ = os.O_RDONLY | getattr(os, "O_BINARY", 0)  # Windows would translate line ends


def is_junk(name: str) -> bool:
    """Whether a folder of this name is ignored: it is hidden, or a system created it."""
    return name.startswith(".") or name.lower() in JUNK_FOLDERS


def suffix_of(name: str) -> str:
    """Return the lower-case suffix, or "without a suffix", for the count of ignored files."""
    return os.path.splitext(name)[1].lower() or "without a suffix"


def unicode_name(name: str) -> str:
    r"""Return a file's name as valid Unicode: bytes that are not UTF-8 become backslash escapes.

    >>> unicode_name("caf\udce9.jpg")
    'caf\\udce9.jpg'
    """
    return name if name.isascii() else name.encode("utf-8", "backslashreplace").decode()


def listed(names: Collection[str]) -> str:
    """Return up to five quoted, printable names, and how many more there are."""
    shown = [f"'{printable(name, 80)}'" for _, name in zip(range(SHOWN), names, strict=False)]
    more = [f"{len(names) - SHOWN:,} more"] if len(names) > SHOWN else []
    return ", ".join(shown + more)


def ignored_files_note(ignored: Counter[str]) -> list[str]:
    """Return a note that counts the ignored files by suffix; an empty list if no file was ignored."""
    if not ignored:
        return []
    common = [f"{count:,} {printable(suffix, 20)}" for suffix, count in ignored.most_common(SHOWN)]
    rest = sum(ignored.values()) - sum(count for _, count in ignored.most_common(SHOWN))
    more = [f"{rest:,} more"] if rest else []
    labels = [suffix for suffix in LABEL_SUFFIXES if ignored[suffix]]
    dropped = f"; labels in {' or '.join(labels)} files are not read" if labels else ""
    return [f"ignored, not image files: {', '.join(common + more)}{dropped}"]


def no_images_error(source: str, ignored: Counter[str], notes: Iterable[str] = ()) -> ValueError:
    """Return the error for a source without images; it counts by suffix the files that are there instead."""
    words = [
        f"{printable(source)}: no image in it (looked for {', '.join(SUFFIXES)})",
        *ignored_files_note(ignored),
        *notes,
    ]
    words += [
        remedy for suffixes, remedy in _CONTAINERS.items() if any(ignored[suffix] for suffix in suffixes)
    ]
    return ValueError("; ".join(words))


def reject_split_folders(source: str, classes: list[str], remedy: str) -> None:
    """Raise ValueError where the class folders are called "train", "val" or the like: the level is too high."""
    splits = [name for name in classes if name.lower() in SPLIT_NAMES]
    if splits and (len(splits) > 1 or splits == classes):
        names = printable(" and ".join(splits))
        raise ValueError(
            f"{printable(source)}: {names} look like splits of a data set, not like classes; {remedy}"
        )


def read_file(path: str, max_bytes: int) -> bytes:
    """Return a file's bytes with few system calls: for small images these cost as much as decoding.

    Raises:
        OSError: the file cannot be read.
        ValueError: it has more than `max_bytes`, and was not read.
    """
    descriptor = os.open(path, _READ)
    try:
        size = os.fstat(descriptor).st_size
        check_file_size(size, max_bytes)
        data = os.read(descriptor, size + 1)
        if len(data) == size:
            return data
        # the file grows, its file system reports no sizes, or a read returned only a part
        while more := os.read(descriptor, 1 << 20):
            data += more
            check_file_size(len(data), max_bytes)
        return data
    finally:
        os.close(descriptor)


def read_range(path: str | os.PathLike, offset: int, size: int) -> bytes:
    """Return `size` bytes of a file, or fewer if it ends before that."""
    descriptor = os.open(path, _READ)
    try:
        os.lseek(descriptor, offset, os.SEEK_SET)
        data = os.read(descriptor, size)
        while len(data) < size and (more := os.read(descriptor, size - len(data))):
            data += more
        return data
    finally:
        os.close(descriptor)


def check_file_size(num_bytes: int, max_bytes: int) -> None:
    """Raise ValueError where a source image has more than `max_bytes`."""
    if num_bytes > max_bytes:
        raise ValueError(
            f"the file has {num_bytes / 1e6:,.0f} MB, more than the {max_bytes / 1e6:,.0f} MB that are read "
            "(--max-file-mb)"
        )
