"""Reads tables of labels: CSV with any separator, JSON, JSON lines, and the files that data sets bring.

| file | a line |
|---|---|
| CSV with a header, Hugging Face's `metadata.csv` | `file_name,label` and then `cat/1.jpg,3` |
| CSV without, tiny-imagenet's `val_annotations.txt` | `val_0.JPEG  n03444034  0  32  44  62` |
| Kaggle's `LOC_val_solution.csv` | `ILSVRC2012_val_00000001,n01751748 111 108 441 193` |
| ImageNet's `ILSVRC2012_validation_ground_truth.txt` | `490` |
| JSON lines | `{"file_name": "cat/1.jpg", "label": "cat"}` |
"""

import csv
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pipelines.convert.devkit import GROUND_TRUTH, parse_meta
from pipelines.convert.labels import LabelTable
from pipelines.system.terminal import printable

IMAGE_COLUMNS = (
    "file_name",
    "filename",
    "file",
    "image",
    "image_id",
    "imageid",
    "path",
    "filepath",
    "name",
    "img",
    "id",
)
"""Lower-case names of a column that holds the images' names, the likelier first."""
LABEL_COLUMNS = (
    "label",
    "labels",
    "class",
    "class_name",
    "category",
    "target",
    "wnid",
    "predictionstring",
    "fine_label",
)
"""Lower-case names of a column that holds the labels, the likelier first."""
MAX_BYTES = 1 << 30
"""Bytes of the largest file that is read; a line per image of ImageNet takes 0.1 GB."""

Row = tuple[str, Any]
"""Name of an image and its label, which may be missing or of any type."""


def read_label_file(path: Path, columns: Mapping[str, str] | None = None) -> LabelTable:
    """Return the table in a file.

    Args:
        path: the file.
        columns: names of the columns or keys "image" and "label"; those that are not given are found by usual names.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no table, or it is not clear which columns are meant.
    """
    columns = columns or {}
    where = printable(path)
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{where}: over {MAX_BYTES >> 20} MB, which is no table of labels")
    data = path.read_bytes()
    if b"\0" in data[:4096] and data[:2] not in (b"\xff\xfe", b"\xfe\xff"):
        raise ValueError(f"{where}: binary data, not a table of labels; it must be CSV or JSON lines")
    coding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8"
    # names of files may be any bytes
    text = data.decode(coding, "surrogateescape").removeprefix("\ufeff")
    if not text.strip():
        raise ValueError(f"{where}: empty; a table of labels has a line per image")
    start = text.lstrip()[0]
    if start == "{" or (start == "[" and path.suffix.lower() in (".json", ".jsonl")):
        return _table(path.name, _from_json(text, where, columns))
    lines = text.split()
    if not columns and all(line.isdigit() for line in lines) and len(lines) == len(text.strip().splitlines()):
        return LabelTable(path.name, {}, by_number=_by_number(path, lines))
    return _from_csv(text, path.name, where, columns)


def _by_number(path: Path, lines: list[str]) -> tuple[str | int, ...]:
    """Return labels that stand one on a line: ImageNet's are ids from 1 on, which `meta.mat` beside it explains."""
    if path.name != GROUND_TRUTH:
        return tuple(map(int, lines))
    meta = path.with_name("meta.mat")
    if not meta.is_file():
        raise ValueError(
            f"{printable(path)}: its numbers are explained by meta.mat, which must lie beside it: unpack the whole "
            "development kit"
        )
    wnids, _ = parse_meta(meta.read_bytes(), printable(meta))
    return tuple(wnids.get(int(line), f"class {line}") for line in lines)


def _from_json(text: str, where: str, columns: Mapping[str, str]) -> list[Row]:
    """Return the rows of JSON lines, of a list of objects or pairs, or of one object name → label."""
    try:
        content: Any = json.loads(text)
    except RecursionError:
        raise ValueError(f"{where}: nested too deeply for a table of labels") from None
    except ValueError:
        content = [
            _json_line(line, number, where)
            for number, line in enumerate(text.splitlines(), 1)
            if line.strip()
        ]
    if isinstance(content, dict) and isinstance(content.get("labels"), list):
        content = content["labels"]
    if isinstance(content, dict):
        names = {name.lower() for name in content}
        if not (names & set(IMAGE_COLUMNS) and names & set(LABEL_COLUMNS)) and not columns:
            return list(content.items())
        content = [content]
    if not isinstance(content, list) or not content:
        raise ValueError(
            f'{where}: no table of labels; JSON must be a line {{"file_name": …, "label": …}} per image'
        )
    if all(isinstance(row, list) and len(row) == 2 for row in content):
        return [(str(name), label) for name, label in content]
    if not all(isinstance(row, dict) for row in content):
        raise ValueError(
            f"{where}: some entries of the JSON are no objects; each must have a name and a label"
        )
    image = _column(list(content[0]), "image", columns, IMAGE_COLUMNS, where)
    label = _column(list(content[0]), "label", columns, LABEL_COLUMNS, where)
    for number, row in enumerate(content, 1):
        if not isinstance(row.get(image), str):
            raise ValueError(f"{where}: entry {number} has no name as its key {printable(image)!r}")
    return [(row[image], row.get(label)) for row in content]


def _json_line(line: str, number: int, where: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{where}, line {number}: no valid JSON ({printable(reason, 200)}); correct it"
        ) from None


def _from_csv(text: str, name: str, where: str, columns: Mapping[str, str]) -> LabelTable:
    lines = text.splitlines()
    separator = max(",;\t|", key=lines[0].count)
    if separator in lines[0]:
        try:
            rows = [row for row in csv.reader(lines, delimiter=separator) if row]
        except csv.Error as error:
            raise ValueError(f"{where}: no CSV table ({error}); correct it") from None
    else:  # columns between spaces; a name must not have one
        rows = [line.split() for line in lines if line.strip()]
    first = [cell.strip() for cell in rows[0]]
    lower = [cell.lower() for cell in first]
    has_header = bool(columns) or bool(set(lower) & set(IMAGE_COLUMNS) and set(lower) & set(LABEL_COLUMNS))
    image, label = 0, 1
    if has_header:
        image = first.index(_column(first, "image", columns, IMAGE_COLUMNS, where))
        label = first.index(_column(first, "label", columns, LABEL_COLUMNS, where))
    elif len(first) < 2:
        raise ValueError(
            f"{where}: its first line, '{printable(lines[0], 80)}', has one column; a table of labels has a name and a "
            "label per line"
        )
    pairs: list[Row] = []
    for row in rows[has_header:]:
        if len(row) <= max(image, label):
            if len(row) <= image:
                raise ValueError(
                    f"{where}: a line has too few columns: '{printable(separator.join(row), 80)}'"
                )
            pairs.append((row[image].strip(), None))
            continue
        value = row[label].strip()
        if has_header and lower[label] == "predictionstring":
            value = value.partition(" ")[0]  # the class, and a box
        pairs.append((row[image].strip(), value))
    return _table(name, pairs, None if has_header else first[0])


def _column(
    names: list[str], column: str, columns: Mapping[str, str], usual: Iterable[str], where: str
) -> str:
    """Return the name of a column: the one that was asked for, or one with a usual name."""
    if column in columns:
        if columns[column] in names:
            return columns[column]
        raise ValueError(
            f"{where}: no column {printable(columns[column])!r}; it has {printable(', '.join(names), 200)}"
        )
    by_lower = {name.lower(): name for name in reversed(names)}
    found = next((by_lower[name] for name in usual if name in by_lower), None)
    if found is None:
        raise ValueError(
            f"{where}: which column is the {column}? It has {printable(', '.join(names), 200)}: name it with --columns "
            f"{column}=NAME"
        )
    return found


def _table(name: str, rows: Iterable[Row], perhaps_header: str | None = None) -> LabelTable:
    labels: dict[str, str | int] = {}
    faults: dict[str, str] = {}
    for image, value in rows:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, (str, int)) or value == "":
            faults[image] = (
                f"no label in {name}" if value in (None, "") else f"label {value!r} in {name} is no class"
            )
        elif labels.setdefault(image, value) != value:
            faults[image] = f"two labels in {name}: {labels[image]!r} and {value!r}"
    for image in faults:
        labels.pop(image, None)
    return LabelTable(name, labels, faults, perhaps_header)
