"""The tables of one `.beton` file, checked: all that leads to an address, for all samples at once.

`check_layout` finds the tables by the header, and `read_samples` takes from them what a reader keeps.  A corrupt or
hostile file is refused with a reason, and one that passes is safe to read.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipelines.beton import jpeg
from pipelines.beton.layout import (
    ALLOCATION,
    FIELD_DESCRIPTOR,
    FIELD_KINDS,
    FIELD_METADATA,
    HEADER,
    IMAGE_FIELD,
    INT_FIELD,
    JPEG_MODE,
    MAX_PIXELS,
    RAW_MODE,
    VERSION,
    Field,
    metadata_type,
)

CHUNK = 1 << 16
"""Rows of a table that are checked at a time."""


@dataclass(frozen=True)
class Columns:
    """What is kept of samples: arrays [N], or slices of them, for the samples of one file."""

    heights: np.ndarray
    """int32: pixels, ≥ 1."""
    widths: np.ndarray
    """int32: pixels, ≥ 1; heights · widths ≤ 2²⁸."""
    labels: np.ndarray
    """int64: −1 where unknown."""
    modes: np.ndarray
    """uint8: `layout.JPEG_MODE` or `layout.RAW_MODE`."""
    offsets: np.ndarray
    """int64: first byte of the image's payload."""
    sizes: np.ndarray
    """int64: bytes of the image's payload."""

    @classmethod
    def empty(cls, num_samples: int) -> "Columns":
        """Return uninitialised columns."""
        types = (np.int32, np.int32, np.int64, np.uint8, np.int64, np.int64)
        return cls(*(np.empty(num_samples, kind) for kind in types))

    def of(self, first: int, end: int) -> "Columns":
        """Return views of samples [first, end)."""
        columns = (self.heights, self.widths, self.labels, self.modes, self.offsets, self.sizes)
        return Columns(*(column[first:end] for column in columns))


@dataclass(frozen=True)
class Layout:
    """Where the tables of a file lie, and what its fields are."""

    num_samples: int
    page_size: int
    metadata: np.ndarray
    """Rows [N]: a view of the file."""
    metadata_end: int
    """First byte behind the metadata, and so behind all that precedes the payloads."""
    allocations: np.ndarray
    """`layout.ALLOCATION` entries: a view of the file."""
    table: int
    """First byte of the allocation table, and so behind the payloads."""
    image: str
    """Field of `metadata` that is read as the image."""
    label: str | None
    """Field of `metadata` that is read as the label."""
    fields: tuple[Field, ...]


def check_layout(
    path: Path, data: np.ndarray, image_field: str | None = None, label_field: str | None = None
) -> Layout:
    """Return where the tables of a file lie.

    Args:
        path: names the file in errors.
        data: uint8: the whole file, at least as long as a header.
        image_field, label_field: names of the fields to read; None: "image" and "label", or else the first of the type.

    Raises:
        ValueError: it is no `.beton` file of version 2, is truncated, or has no such field.
    """
    header = data[: HEADER.itemsize].view(HEADER)[0]
    version, num_fields, page, num, table = (int(header[name]) for name in HEADER.names or ())
    if version != VERSION:
        raise _error(
            path,
            f"no .beton file of version {VERSION}: it starts with version {version}; `fastclr convert` makes one",
        )
    if not num_fields or not num:
        raise _error(path, f"the header names {num_fields} fields and {num} samples; it needs one of each")
    if page & (page - 1) or not page:
        raise _error(path, f"the page size is {page}, no power of two")

    start = HEADER.itemsize + num_fields * FIELD_DESCRIPTOR.itemsize
    if start > len(data):
        raise _error(path, f"truncated: {num_fields} field descriptors do not fit into {len(data)} bytes")
    fields = data[HEADER.itemsize : start].view(FIELD_DESCRIPTOR)
    row = _row_type(path, fields)
    end = start + num * row.itemsize
    if end > len(data):
        raise _error(path, f"truncated: the metadata of {num} samples end at byte {end} of {len(data)}")
    if not end <= table <= len(data):
        raise _error(
            path,
            f"truncated: its allocation table is at byte {table} of {len(data)}; copy or convert it again",
        )
    if (len(data) - table) % ALLOCATION.itemsize:
        raise _error(path, "truncated: the last entry of its allocation table is incomplete")
    image = _pick(path, fields, IMAGE_FIELD, "image", image_field)
    assert image is not None
    label = _pick(path, fields, INT_FIELD, "label", label_field)
    described = tuple(
        Field(
            _name(field),
            FIELD_KINDS[int(field["type_id"])],
            {image: "image", label: "label"}.get(f"f{k}"),
        )
        for k, field in enumerate(fields)
    )
    allocations = data[table:].view(ALLOCATION)
    return Layout(num, page, data[start:end].view(row), end, allocations, table, image, label, described)


def read_samples(path: Path, layout: Layout, columns: Columns) -> None:
    """Fill the columns of a file's samples; `offsets` count from the start of the file.

    Raises:
        ValueError: something in the tables can't be true; the message names the first bad sample.
    """
    images = layout.metadata[layout.image]
    columns.modes[:] = images["mode"]
    columns.heights[:] = images["height"]
    columns.widths[:] = images["width"]
    columns.labels[:] = -1 if layout.label is None else layout.metadata[layout.label]
    _locate(path, images["data_ptr"], layout, columns)
    for first, end in _chunks(layout.num_samples):
        _check_images(path, columns.of(first, end), first)


def _row_type(path: Path, fields: np.ndarray) -> np.dtype:
    for field in fields:
        if int(field["type_id"]) not in FIELD_METADATA:
            raise _error(
                path,
                f"its field {_name(field)!r} is of type {field['type_id']}, whose size is not known "
                "(a type defined by whoever wrote the file); write the file again without that field",
            )
    if IMAGE_FIELD not in fields["type_id"]:
        raise _error(
            path, f"none of its fields is an image: {', '.join(repr(_name(field)) for field in fields)}"
        )
    return metadata_type(fields["type_id"].tolist())


def _pick(path: Path, fields: np.ndarray, type_id: int, usual: str, wanted: str | None) -> str | None:
    """Return the field of a type in a row of the metadata: the one wanted, or of the usual name, or the first."""
    of_type = np.flatnonzero(fields["type_id"] == type_id)
    named = of_type[fields["name"][of_type] == (wanted or usual).encode()]
    if wanted is not None and not len(named):
        there = ", ".join(f"{_name(field)!r} ({FIELD_KINDS[int(field['type_id'])]})" for field in fields)
        raise _error(
            path,
            f"no {FIELD_KINDS[type_id]} field {wanted!r} to read as {usual} ({usual}_field); its fields: {there}",
        )
    return f"f{(named if len(named) else of_type)[0]}" if len(of_type) else None


def _locate(path: Path, pointers: np.ndarray, layout: Layout, columns: Columns) -> None:
    """Find the payload of every image; check that all payloads are apart and lie between the tables."""
    low, high, table = layout.metadata_end, layout.table, layout.allocations
    # of an empty payload (FFCV's bytes field allows them) the address may be that of its neighbour
    if not table["size"].all():
        table = table[table["size"] > 0]
    # a writer of one thread leaves them in order: then no copy is needed
    if (table["ptr"][1:] < table["ptr"][:-1]).any():
        table = table[np.argsort(table["ptr"], kind="stable")]
    begin, size = table["ptr"], table["size"]
    for first, end in _chunks(len(table)):
        _check_payloads(path, table[first : end + 1], low, high)
    if not len(table):
        raise _error(path, "its allocation table is empty")
    if np.array_equal(begin, pointers):
        columns.offsets[:], columns.sizes[:] = pointers, size
        return
    for first, end in _chunks(len(pointers)):
        wanted = pointers[first:end]
        entry = np.minimum(np.searchsorted(begin, wanted), len(table) - 1)
        bad = begin[entry] != wanted
        if bad.any():
            k = int(bad.argmax())
            raise _error(path, f"no payload starts at byte {wanted[k]}, where its image should be", first + k)
        columns.offsets[first:end], columns.sizes[first:end] = wanted, size[entry]


def _chunks(num_rows: int) -> Iterator[tuple[int, int]]:
    """Yield bounds of rows that are checked at a time: temporary arrays then stay in the cache."""
    for first in range(0, num_rows, CHUNK):
        yield first, min(first + CHUNK, num_rows)


def _check_payloads(path: Path, table: np.ndarray, low: int, high: int) -> None:
    """Check entries of a sorted allocation table: they lie within the data, and none runs into the next."""
    begin, size = table["ptr"], table["size"]
    # in this order no sum of two hostile numbers can wrap around
    bad = (begin < low) | (begin > high)
    bad |= size > high - np.minimum(begin, high)
    if bad.any():
        k = int(bad.argmax())
        raise _error(
            path,
            f"a payload of {size[k]} bytes at byte {begin[k]} lies outside the data, {low} to {high}",
            table["sample_id"][k],
        )
    bad = begin[:-1] + size[:-1] > begin[1:]
    if bad.any():
        k = int(bad.argmax())
        raise _error(path, f"its payload at byte {begin[k]} runs into the next", table["sample_id"][k])


def _check_images(path: Path, columns: Columns, first: int) -> None:
    """Check the images of some samples, of which `first` is the number in the file of the first one."""
    modes, heights, widths, sizes = columns.modes, columns.heights, columns.widths, columns.sizes
    pixels = heights.astype(np.int64) * widths
    is_jpeg = modes == JPEG_MODE

    def refuse(bad: np.ndarray, describe: Callable[[int], str]) -> None:
        if bad.any():
            k = int(bad.argmax())
            raise _error(path, describe(k), first + k)

    refuse(~is_jpeg & (modes != RAW_MODE), lambda k: f"image mode {modes[k]} is neither jpg (0) nor raw (1)")
    refuse(
        (pixels < 1) | (pixels > MAX_PIXELS),
        lambda k: f"an image of {heights[k]}×{widths[k]} pixels; 1 to {MAX_PIXELS} pixels are read",
    )
    refuse(
        ~is_jpeg & (sizes != 3 * pixels),
        lambda k: f"{sizes[k]} bytes are no raw image of {heights[k]}×{widths[k]} pixels",
    )
    # a decoder would take memory for all pixels before it finds that they are not there
    refuse(
        is_jpeg & (pixels > np.maximum(jpeg.LARGE, jpeg.MAX_PIXELS_PER_BYTE * sizes)),
        lambda k: f"a JPEG of {sizes[k]} bytes cannot hold {heights[k]}×{widths[k]} pixels",
    )


def _name(field: np.void) -> str:
    return field["name"].decode("ascii", "replace")


def _error(path: Path, what: str, sample: int | None = None) -> ValueError:
    where = "" if sample is None else f"sample {sample}: "
    return ValueError(f"{path}: {where}{what}")
