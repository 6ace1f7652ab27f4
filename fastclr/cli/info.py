"""`fastclr info FILE`: what a .beton file holds, or a set of them."""

import sys
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tyro

from fastclr.arguments import DataSet, FieldNames, Fields, data_set, parse
from pipelines.beton import BetonReader
from pipelines.beton.layout import JPEG_MODE, Field
from pipelines.system.cpus import cores
from pipelines.system.terminal import printable

BAR_WIDTH = 40
CLASSES_SHOWN = 10
FIELDS_SHOWN = 10
MAX_NAME = 60
"""Maximum number of characters of a class name that are shown."""


@dataclass(frozen=True)
class Arguments:
    """Print what a .beton file holds, and what its side-car says about the origin."""

    files: DataSet
    """A file that fastclr or FFCV wrote, which needs no side-car; or those of a set: their names, a pattern in quotes,
    a folder, or the set's index."""
    verify: tyro.conf.FlagCreatePairsOff[bool] = False
    """Decode every image instead, and name each one that is corrupt; the exit code is 1 if there are any."""
    fields: Fields = field(default_factory=FieldNames)


def main(argv: list[str]) -> int:
    """Run the command."""
    arguments = parse(Arguments, argv, "fastclr info")
    with BetonReader(data_set(arguments.files), *arguments.fields) as reader:
        if arguments.verify:
            return _verify(reader)
        sidecar = reader.sidecar
        lines = [*_content(reader), "", *_classes(reader), "", *_image_sizes(reader)]
    lines += ["", *_origin(sidecar)] if sidecar else ["", _no_sidecar(len(reader.files))]
    # names and texts are untrusted: they come from whoever wrote the file
    print("\n".join(map(printable, lines)))
    return 0


def _verify(reader: BetonReader) -> int:
    """Decode all images; print the corrupt ones, and return the exit code."""
    from rich.console import Console
    from rich.progress import Progress

    from pipelines.beton.verify import verify

    num_corrupt = 0
    console = Console(stderr=True)
    columns = Progress.get_default_columns()
    progress = Progress(*columns, transient=True, console=console, disable=not console.is_terminal)
    with progress:
        task = progress.add_task("decoding", total=len(reader))
        for index, reason in verify(reader, cores()):
            progress.update(task, completed=index + 1)
            if reason:
                num_corrupt += 1
                print(printable(reason), flush=True)
    state = f"{num_corrupt:,} corrupt" if num_corrupt else "none corrupt"
    print(printable(f"{reader.path}: {len(reader):,} images decoded, {state}"))
    return 1 if num_corrupt else 0


def _no_sidecar(num_files: int) -> str:
    if num_files > 1:
        return "no index (a .json beside the files, written when they were complete)"
    return "no side-car (a .json beside it, written with it)"


def _content(reader: BetonReader) -> list[str]:
    jpegs = int((reader.modes == JPEG_MODE).sum())
    stored = f"{jpegs:,} JPEG, {len(reader) - jpegs:,} raw"
    low, middle, high = np.quantile(reader.sizes, [0, 0.5, 1]) / 1e3
    return [
        f"{reader.path}: {len(reader):,} images ({stored}), {reader.file_bytes / 1e6:,.1f} MB",
        f"  bytes per image  {low:,.1f} to {high:,.1f} KB, median {middle:,.1f} KB",
        *_files(reader),
        f"  page             {reader.page_size >> 20} MiB",
        f"  fingerprint      {reader.fingerprint}",
        f"  fields           {_fields(reader.fields)}",
    ]


def _files(reader: BetonReader) -> list[str]:
    """Describe the files of a set."""
    if len(reader.files) == 1:
        return []
    low, high = (f"{count:,}" for count in np.quantile(np.diff(reader.first_samples), [0, 1]).astype(int))
    first, last = reader.files[0].name, reader.files[-1].name
    return [f"  files            {len(reader.files):,}, {first} to {last}, of {low} to {high} images"]


def _fields(fields: tuple[Field, ...]) -> str:
    """Name the fields, with those that are read first."""
    described = []
    for each in sorted(fields, key=lambda each: each.read_as is None):
        use = f"read as {each.read_as}" if each.read_as else "not read"
        described.append(f"{printable(each.name, MAX_NAME)} ({each.kind}, {use})")
    more = [f"… and {len(fields) - FIELDS_SHOWN:,} more"] if len(fields) > FIELDS_SHOWN else []
    return ", ".join(described[:FIELDS_SHOWN] + more)


def _classes(reader: BetonReader) -> list[str]:
    floats = [field.name for field in reader.fields if field.kind == "float"]
    if floats and not any(field.read_as == "label" for field in reader.fields):
        name = printable(floats[0], MAX_NAME)
        return [
            f"labels: none; the floats of field '{name}' are dropped, as class labels are integers (IntField)"
        ]
    labels, counts = np.unique(reader.labels, return_counts=True)
    known = labels >= 0
    if not known.any():
        return ["labels: none"]
    lines = [f"labels: {known.sum():,} classes of {counts[known].min():,} to {counts[known].max():,} images"]
    if not known.all():
        lines[0] += f", {counts[~known].sum():,} images without label"
    shown = np.flatnonzero(known)
    lines += _bars([(_class(reader, int(labels[k])), int(counts[k])) for k in shown[:CLASSES_SHOWN]])
    if len(shown) > CLASSES_SHOWN:
        lines.append(f"  … and {len(shown) - CLASSES_SHOWN:,} more")
    return lines


def _class(reader: BetonReader, label: int) -> str:
    """Return a class's name, and the readable one where names are codes: "n01440764 tench, Tinca tinca"."""
    names, titles = reader.class_names or [], reader.class_titles or []
    name = names[label] if label < len(names) else str(label)
    return f"{name} {titles[label]}" if label < len(titles) and titles[label] != name else name


def _image_sizes(reader: BetonReader) -> list[str]:
    """Return a histogram of the longer side in half octaves."""
    longer = np.maximum(reader.heights, reader.widths)
    k = int((reader.heights.astype(np.int64) * reader.widths).argmax())
    lines = [f"longer side, pixels (largest image {reader.heights[k]}×{reader.widths[k]})"]
    octave = np.floor(2 * np.log2(longer)).astype(int)
    rows = []
    for low in range(octave.min(), octave.max() + 1):
        inside = longer[octave == low]
        first, last = int(np.ceil(2 ** (low / 2))), int(np.ceil(2 ** ((low + 1) / 2))) - 1
        if first <= last:  # below 4 pixels some half octaves hold no integer
            rows.append((f"{first} to {last}" if first < last else f"{first}", len(inside)))
    return lines + _bars(rows)


def _bars(rows: list[tuple[str, int]]) -> list[str]:
    names = [printable(name, MAX_NAME) for name, _ in rows]
    width, top = max(map(len, names)), max(count for _, count in rows)
    block = _block()
    return [
        f"  {name:<{width}}  {count:>9,}  {block * round(BAR_WIDTH * count / top)}".rstrip()
        for name, (_, count) in zip(names, rows, strict=True)
    ]


def _block() -> str:
    """Return the letter that bars are drawn with: a full block where stdout's encoding has it."""
    try:
        "█".encode(getattr(sys.stdout, "encoding", None) or "ascii")
    except UnicodeEncodeError:
        return "#"
    return "█"


def _origin(sidecar: dict[str, Any]) -> list[str]:
    """Return lines about the origin from the side-car; it may have been edited, so every type is checked."""
    lines = ["side-car"]
    for key in ("source", "counts", "options", "versions"):
        value = sidecar.get(key)
        if isinstance(value, dict):
            lines.append(f"  {key:<10} " + ", ".join(f"{name} {text}" for name, text in value.items()))
    re_encoded = sidecar.get("re_encoded")
    if isinstance(re_encoded, dict):
        found = ((reason, names) for reason, names in re_encoded.items() if isinstance(names, list))
        lines += [f"  encoded    {len(names):,} × {reason}" for reason, names in found]
    skipped = sidecar.get("skipped")
    if isinstance(skipped, dict):
        lines += [
            f"  left out   {name!r}: {reason}" for name, reason in list(skipped.items())[:CLASSES_SHOWN]
        ]
        if len(skipped) > CLASSES_SHOWN:
            lines.append(f"  … and {len(skipped) - CLASSES_SHOWN:,} more")
    return lines
