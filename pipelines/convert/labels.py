"""Gives a source's images the labels of a table, by their names."""

import posixpath
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from pipelines.beton.layout import MAX_CLASSES
from pipelines.convert.class_folders import clean
from pipelines.convert.files import listed, unicode_name
from pipelines.convert.protocol import Source
from pipelines.convert.relabelled import Relabelled
from pipelines.system.terminal import printable

_NUMBERED = re.compile(r"ILSVRC2012_(?:val|test)_(\d{8})")
"""Name of a validation image of ImageNet, without its suffix."""


@dataclass(frozen=True)
class LabelTable:
    """Names of images and their labels."""

    name: str
    """Of the file, for remarks and errors."""
    rows: Mapping[str, str | int]
    """Name → label: a class name or a number, perhaps as text."""
    faults: Mapping[str, str] = field(default_factory=dict)
    """Names that have no label or several, and why."""
    perhaps_header: str | None = None
    """Name in the first row of a table that may be its header."""
    by_number: tuple[str | int, ...] = ()
    """Labels without names, one per image in the order of their names; `rows` is empty then."""


def apply_labels(
    source: Source,
    table: LabelTable,
    class_names: list[str] | None = None,
    class_titles: list[str] | None = None,
) -> Relabelled:
    """Return a source with the labels of a table.

    Names are compared as paths, or else without folders, or else also without suffixes: in the first of these ways
    in which most of them meet.  An image without a label, or with two, fails when it is read; so does a name
    of the table that no image has, which is numbered behind the images.

    Args:
        source: the images; the labels that it has are forgotten.
        table: the labels.
        class_names: the classes in order; None: the names in the table, sorted, unless all labels are numbers.
        class_titles: readable names of `class_names`.

    Raises:
        ValueError: no image has a name of the table, or its labels have no names and are not as many as the images.
    """
    items = [source.item(k) for k in range(len(source.labels))]
    rows, faults_by_name = dict(table.rows), dict(table.faults)
    if table.by_number:
        rows = _numbered_rows(items, table)
    way, found = _best_way(items, {*rows, *faults_by_name})
    keys = [way(item) for item in items]
    of_key: dict[str, str | int] = {}
    conflicts: set[str] = set()
    for name, label in rows.items():
        if of_key.setdefault(way(name), label) != label:
            conflicts.add(way(name))
    fault_of_key = {way(name): reason for name, reason in faults_by_name.items()}
    count = Counter(keys)
    faults: dict[int, str] = {}
    for k, key in enumerate(keys):
        if key in fault_of_key:
            faults[k] = fault_of_key[key]
        elif key in conflicts:
            faults[k] = f"two labels in {table.name}, of names that differ in their folders only"
        elif key not in of_key:
            faults[k] = f"no label in {table.name}"
        elif count[key] > 1 and way is not _path:
            faults[k] = (
                f"{count[key]} images have this name, so its label in {table.name} may be that of another"
            )
    values = {k: of_key[key] for k, key in enumerate(keys) if k not in faults}
    names, labels = _numbers(values, class_names, len(items), faults)
    there = set(keys)
    absent = [name for name in (*rows, *faults_by_name) if way(name) not in there]
    header = [name for name in absent if name == table.perhaps_header]
    absent = [name for name in absent if name not in header]
    reason = f"in {table.name}, but not among the images"
    missing = [(unicode_name(name), reason) for name in absent]
    result = Relabelled(source, labels, names, class_titles, faults, missing)
    num_classes = len(np.unique(labels[labels >= 0]))
    result.remarks.append(
        f"labels from {table.name}: {found - len(faults):,} images, {num_classes:,} classes"
    )
    if header:
        result.remarks.append(f"the first line of {table.name} is taken for a header")
    if without := [items[k] for k in faults]:
        result.remarks.append(f"images without a clear label in {table.name}: {listed(without)}")
    if absent:
        result.remarks.append(f"labels of images that are not there, in {table.name}: {listed(absent)}")
    return result


def _best_way(items: list[str], names: set[str]) -> tuple[Callable[[str], str], int]:
    """Return the way of reading names in which most images meet one of the table, and how many do."""
    best: tuple[Callable[[str], str], int] = (_path, 0)
    for way in (_path, _base, _stem):
        known = {way(name) for name in names}
        found = sum(way(item) in known for item in items)
        if found > best[1]:
            best = way, found
    if not best[1]:
        first = f"'{printable(min(names), 80)}'" if names else "none"
        raise ValueError(
            f"no image has a name of the table of labels: its first name is {first}, the first image "
            f"'{printable(items[0], 80)}'; name the table's columns with --columns image=NAME,label=NAME"
        )
    return best


def _numbered_rows(items: list[str], table: LabelTable) -> dict[str, str | int]:
    """Return the rows of a table without names: by the numbers in ImageNet's names, or by the order of names."""
    matches = [_NUMBERED.fullmatch(_stem(item)) for item in items]
    if all(matches):
        prefix = _stem(items[0])[:-8]
        return {f"{prefix}{k:08}": label for k, label in enumerate(table.by_number, 1)}
    if len(items) != len(table.by_number):
        raise ValueError(
            f"{table.name}: {len(table.by_number):,} labels without names for {len(items):,} images; there must be "
            "one per image, in the order of their names"
        )
    return dict(zip(sorted(items), table.by_number, strict=True))


def _numbers(
    values: dict[int, str | int], class_names: list[str] | None, num_images: int, faults: dict[int, str]
) -> tuple[list[str] | None, np.ndarray]:
    """Return class names and int64 [N] labels; what is no class becomes a fault."""
    labels = np.full(num_images, -1)
    if class_names is None and all(_is_number(value) for value in values.values()):
        for k, value in values.items():
            if -1 <= int(value) < MAX_CLASSES:
                labels[k] = int(value)
            else:
                faults[k] = f"label {value} is no class number (0 to {MAX_CLASSES - 1:,})"
        return None, labels
    names = class_names or sorted({str(value) for value in values.values()})
    position = {name: k for k, name in enumerate(names)}
    for k, value in values.items():
        if str(value) in position:
            labels[k] = position[str(value)]
        else:
            faults[k] = f"label {str(value)!r} is none of the {len(names):,} classes"
    return [unicode_name(name) for name in names], labels


def _is_number(value: str | int) -> bool:
    return isinstance(value, int) or (len(value) < 20 and re.fullmatch(r"-?\d+", value, re.ASCII) is not None)


def _path(name: str) -> str:
    return clean(unicode_name(name))


def _base(name: str) -> str:
    return posixpath.basename(_path(name))


def _stem(name: str) -> str:
    return posixpath.splitext(_base(name))[0]
