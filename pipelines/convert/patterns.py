"""Expands patterns of file names that reach the command in quotes: `'train-{000..146}.tar'`, `'*.parquet'`."""

import glob
import itertools
import os
import re

from pipelines.system.terminal import printable

MAX_PATHS = 100_000
"""Names that a pattern with braces may stand for."""

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


def expand_pattern(source: str, with_glob: bool = True) -> list[str]:
    """Return the paths that a pattern means, as a shell would: braces in their order, files sorted.

    A path that exists is itself, whatever is in its name.

    Args:
        source: a path, or a pattern with `{000..146}`, `{a,b}`, `*`, `?` or `[…]`.
        with_glob: whether `*`, `?` and `[…]` are looked up in the file system.

    Raises:
        FileNotFoundError: no file has a name of this pattern.
        ValueError: the braces stand for too many names.

    >>> expand_pattern("train-{008..010}.tar")
    ['train-008.tar', 'train-009.tar', 'train-010.tar']
    """
    if not re.search(r"[*?\[{]", source) or os.path.lexists(source):
        return [source]
    paths = _expand_braces(source)
    if not with_glob:
        return paths
    found = []
    for path in paths:
        if os.path.lexists(path) or not glob.has_magic(path):
            found.append(path)
        elif matches := sorted(glob.glob(path)):
            found += matches
        else:
            raise FileNotFoundError(f"{printable(source)}: no file or folder has a name of this pattern")
    return found


def _expand_braces(source: str) -> list[str]:
    pieces = _BRACES.split(source)  # what is between braces has an odd index
    choices = [_alternatives(piece) if k % 2 else [piece] for k, piece in enumerate(pieces)]
    count = 1
    for choice in choices:
        count *= len(choice)
    if count > MAX_PATHS:
        raise ValueError(f"{printable(source)} stands for {count:,} names; up to {MAX_PATHS:,} are read")
    return ["".join(choice) for choice in itertools.product(*choices)]


def _alternatives(inside: str) -> list[str]:
    """Return what a brace stands for; without a comma or a range it stands for itself."""
    if match := _RANGE.fullmatch(inside):
        if max(len(match[1]), len(match[2])) > 12 or abs(int(match[2]) - int(match[1])) >= MAX_PATHS:
            raise ValueError(
                f"{{{printable(inside, 60)}}} stands for too many numbers; up to {MAX_PATHS:,} names are read"
            )
        first, last = int(match[1]), int(match[2])
        width = max(len(match[1]), len(match[2])) if "0" in (match[1][0], match[2][0]) else 0
        step = 1 if last >= first else -1
        return [f"{number:0{width}}" for number in range(first, last + step, step)]
    return inside.split(",") if "," in inside else ["{" + inside + "}"]
