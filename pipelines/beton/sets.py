"""Sets of files: which `.beton` files are meant where several may be given as one data set.

    train.beton                      one file
    [a.beton, b.beton]               a list: in this order
    "shards/train-*.beton"           a pattern: in the order of the names
    shards/                          a folder of the files of one set
    train.json, or train.beton       what `fastclr convert SOURCE train.beton --shards N` wrote

Files named NAME-00003-of-00064.beton are shards: unless they are given as a list, all of them must be there.
"""

import errno
import glob
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.beton.sidecar import SET_FORMAT, read_content

MAX_SHARDS = 99_999
"""Shards of the largest set: their numbers have five digits."""
SHOWN = 5
"""Files that a message names."""

Files = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
"""One `.beton` file or several, as above."""

_SHARD = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.beton", re.DOTALL)
_NUMBERED = re.compile(r"(.*?)\d*(\D*)", re.DOTALL)


@dataclass(frozen=True)
class FileSet:
    """The files of a data set."""

    files: tuple[Path, ...]
    """In the order of their samples."""
    path: Path
    """What messages call it: the file, or what was given, or the first file and how many more."""


def shard_path(out: Path, number: int, count: int) -> Path:
    """Return the name of a shard.

    >>> shard_path(Path("sets/train.beton"), 3, 64).name
    'train-00003-of-00064.beton'
    """
    return out.with_name(f"{out.stem}-{number:05d}-of-{count:05d}.beton")


def index_path(files: Sequence[Path]) -> Path | None:
    """Return where the index of these files would be, if they are all the shards of a set, in order."""
    match = _SHARD.fullmatch(files[0].name)
    if match is None or len(files) != int(match[3]):
        return None
    out = files[0].with_name(f"{match[1]}.beton")
    if any(file != shard_path(out, number, len(files)) for number, file in enumerate(files)):
        return None
    return out.with_suffix(".json")


def find_files(given: Files) -> FileSet:
    """Return the files that are meant; whether they can be read is not looked at.

    Raises:
        OSError: a folder or an index can't be read, or a pattern or a folder has no file.
        ValueError: shards are missing, a folder holds several sets, or a file is given twice.
    """
    if isinstance(given, (str, os.PathLike)):
        found = _find(Path(given))
        path = found[0] if len(found) == 1 else Path(given)
    else:
        found = [file for one in given for file in _find(Path(one))]
        if not found:
            raise ValueError("an empty list of files; give at least one .beton file")
        path = found[0] if len(found) == 1 else Path(f"{found[0]} and {len(found) - 1} more")
        twice = [file for file, count in Counter(found).items() if count > 1]
        if twice:
            raise ValueError(f"{twice[0]} is given twice; a file can be in a set once")
    return FileSet(tuple(found), path)


def _find(path: Path) -> list[Path]:
    if path.is_dir():
        return _in_folder(path)
    if path.suffix == ".json":
        return _by_index(path, path)
    if os.path.lexists(path):
        return [path]
    if path.suffix == ".beton" and path.with_suffix(".json").is_file():
        return _by_index(path.with_suffix(".json"), path)
    if glob.has_magic(str(path)):
        matches = sorted(Path(name) for name in glob.glob(str(path), recursive=True))
        found = [match for match in matches if match.suffix == ".beton"]
        if not found:
            other = f", only others: {_listed(matches)}" if matches else ""
            raise FileNotFoundError(f"{path}: no .beton file has such a name{other}")
        _check_complete(path, found)
        return found
    return [path]


def _in_folder(folder: Path) -> list[Path]:
    found = sorted(
        file for file in folder.iterdir() if file.suffix == ".beton" and not file.name.startswith(".")
    )
    if not found:
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(folder))
    if len({_stem(file) for file in found}) > 1:
        raise ValueError(
            f"{folder} holds files of several sets: {_listed(found)}; "
            f"give one of them, or a pattern in quotes, '{folder}/NAME-*.beton'"
        )
    _check_complete(folder, found)
    return found


def _stem(file: Path) -> str:
    """What the names of the files of one set have in common: all but the number."""
    match = _SHARD.fullmatch(file.name)
    if match:
        return f"{match[1]}-of-{match[3]}"
    numbered = _NUMBERED.fullmatch(file.stem)
    return "\0".join(numbered.groups()) if numbered else file.stem


def _check_complete(given: Path, found: list[Path]) -> None:
    """Raise ValueError where shards are missing of a set that one was found of."""
    matches = [(file, match) for file in found if (match := _SHARD.fullmatch(file.name))]
    present = set(found)
    for out, count in dict.fromkeys((file.with_name(f"{m[1]}.beton"), int(m[3])) for file, m in matches):
        missing = [path for k in range(count) if (path := shard_path(out, k, count)) not in present]
        if missing:
            raise ValueError(
                f"{given}: {len(missing)} of {count} shards are missing: {_listed(missing)}; write them with "
                "`fastclr convert … --resume`, or give those that are there as a list"
            )


def _by_index(index: Path, given: Path) -> list[Path]:
    """Return the shards that an index names, which all must be there as it says."""
    content = read_content(index)
    if content is None or content.get("format") != SET_FORMAT:
        if given.suffix == ".beton":
            return [given]
        raise ValueError(
            f"{index} is not the index of a set of files; give a .beton file, a pattern in quotes or a folder"
        )
    shards = shards_of(content)
    if not shards:
        raise ValueError(
            f"{index}: its key 'shards' names no shards; write it again with `fastclr convert … --resume`"
        )
    files = [index.with_name(name) for name, _ in shards]
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise ValueError(
            f"{index}: {len(missing)} of {len(files)} shards are missing: {_listed(missing)}; write them with "
            "`fastclr convert … --resume`"
        )
    for file, (_, size) in zip(files, shards, strict=True):
        if file.stat().st_size != size:
            raise ValueError(
                f"{file} has {file.stat().st_size} bytes, and {size} by {index.name}: it is another file; write it "
                "again with `fastclr convert … --resume`"
            )
    return files


def shards_of(index: dict[str, Any]) -> list[tuple[str, int]] | None:
    """Return the names and lengths of the shards, by an index; None if it was edited and says nothing usable."""
    shards, found = index.get("shards"), []
    for shard in shards if isinstance(shards, list) else [None]:
        name, size = (shard.get("name"), shard.get("file_bytes")) if isinstance(shard, dict) else (None, None)
        # a shard may lie in no other folder
        if not (
            isinstance(name, str)
            and _SHARD.fullmatch(name)
            and Path(name).name == name
            and isinstance(size, int)
        ):
            return None
        found.append((name, size))
    return found


def _listed(files: Sequence[Path]) -> str:
    more = [f"… ({len(files)} in all)"] if len(files) > SHOWN else []
    return ", ".join([file.name for file in files[:SHOWN]] + more)
