"""Finds the Parquet files of a split in a folder, as data sets on Hugging Face have them."""

import re
from pathlib import Path

from pipelines.convert.files import SPLIT_NAMES
from pipelines.system.terminal import printable

_PLACES = ("*.parquet", "data/*.parquet", "default/*/*.parquet")
"""Where the files lie: beside each other, or in folders named for their splits."""
_SYNONYMS = {"val": "validation", "valid": "validation", "training": "train"}


def parquet_files(folder: Path, split: str | None) -> list[Path]:
    """Return the Parquet files of a folder, in order; [] where there are none.

    Args:
        folder: the folder, or one whose folder `data` or `default/SPLIT` holds them.
        split: "train", "validation" or the like; None: all, if all are of one split.

    Raises:
        ValueError: there are files of several splits, or none of `split`.
    """
    for place in _PLACES:
        files = sorted(folder.glob(place))
        if files:
            break
    else:
        return []
    by_split: dict[str, list[Path]] = {}
    for file in files:
        by_split.setdefault(_split_of(file), []).append(file)
    if split is None and len(by_split) == 1:
        return files
    wanted = _SYNONYMS.get(split, split) if split else None
    if wanted in by_split:
        return by_split[wanted]
    there = ", ".join(name or "files of no split" for name in sorted(by_split))
    got = f"no files of the split {printable(split)!r}" if split else "files of several splits"
    raise ValueError(f"{printable(folder)}: {got}; it has {printable(there)}: choose one with --split")


def _split_of(file: Path) -> str:
    """Return the split that a file's name begins with, or its folder has; "" where neither is a split."""
    for name in (re.split(r"[-_.]", file.name)[0].lower(), file.parent.name.lower()):
        if name in SPLIT_NAMES:
            return _SYNONYMS.get(name, name)
    return ""
