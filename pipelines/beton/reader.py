"""Reads `.beton` files, its own and FFCV's, and trusts none of them."""

import mmap
import os
import weakref
from collections.abc import Callable
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

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
    count_classes,
    fingerprint,
    fingerprint_probes,
    legacy_fingerprint,
    metadata_type,
)
from pipelines.beton.sidecar import read_sidecar


class BetonReader:
    """The samples of a `.beton` file, decoded on demand from a memory map.

    All offsets and sizes in the file are checked when it opens, for all samples at once: a corrupt or hostile file is
    refused with a reason, and one that opens is safe to read.  One reader serves any number of threads; a pickled one
    opens the file again.

    A file that FFCV wrote may hold further fields.  The image is the field of FFCV's image type, and the label that of
    its int type.  Where there are several, it is the one named "image" ("label"), or else the first.

    Args:
        path: the file.
        image_field, label_field: names of the fields to read; None: found as above.

    Raises:
        OSError: the file cannot be opened.
        ValueError: it is no `.beton` file, or a corrupt one; the message names the first corrupt sample.

    >>> with BetonReader("train.beton") as reader:  # doctest: +SKIP
    ...     pixels, label = reader[0]
    """

    path: Path
    heights: np.ndarray
    """int32 [N], pixels, ≥ 1."""
    widths: np.ndarray
    """int32 [N], pixels, ≥ 1; heights · widths ≤ 2²⁸."""
    labels: np.ndarray
    """int64 [N]; −1 where unknown."""
    modes: np.ndarray
    """uint8 [N]: `layout.JPEG_MODE` or `layout.RAW_MODE`."""
    offsets: np.ndarray
    """int64 [N]: first byte of the image's payload, from the start of the file."""
    sizes: np.ndarray
    """int64 [N]: bytes of the image's payload."""
    page_size: int
    fields: tuple[Field, ...]
    """The fields of the file, and which of them are read."""

    def __init__(
        self, path: str | PathLike[str], image_field: str | None = None, label_field: str | None = None
    ) -> None:
        self._image_field, self._label_field = image_field, label_field
        self.path = Path(path)
        # another process that opens the file again may have another working directory
        self._absolute = self.path.absolute()
        self._data: np.ndarray | None = None
        with open(self.path, "rb") as file:
            self._descriptor = os.dup(file.fileno())
        self._close = weakref.finalize(self, os.close, self._descriptor)
        try:
            self.file_bytes = os.fstat(self._descriptor).st_size
            if self.file_bytes < HEADER.itemsize:
                raise self._error(f"no .beton file: {self.file_bytes} bytes are less than its header")
            try:
                map = mmap.mmap(self._descriptor, 0, access=mmap.ACCESS_READ)
            except OSError as error:
                raise OSError(
                    error.errno,
                    f"the file cannot be mapped into memory ({error.strerror}); copy it to a local disk",
                    str(self.path),
                ) from None
            # the map closes with its last view
            data = np.frombuffer(map, np.uint8)[: self.file_bytes]
            self._open(data)
        except Exception:
            self._close()
            raise
        self._data = data

    def _open(self, data: np.ndarray) -> None:
        """Check the tables, and read the columns that describe the samples."""
        header = data[: HEADER.itemsize].view(HEADER)[0]
        version, num_fields, page, num, table = (int(header[name]) for name in HEADER.names or ())
        if version != VERSION:
            raise self._error(
                f"no .beton file of version {VERSION}: it starts with version {version}; `fastclr convert` makes one"
            )
        if not num_fields or not num:
            raise self._error(f"the header names {num_fields} fields and {num} samples; it needs one of each")
        if page & (page - 1) or not page:
            raise self._error(f"the page size is {page}, no power of two")
        self.page_size = page

        start = HEADER.itemsize + num_fields * FIELD_DESCRIPTOR.itemsize
        if start > len(data):
            raise self._error(f"truncated: {num_fields} field descriptors do not fit into {len(data)} bytes")
        fields = data[HEADER.itemsize : start].view(FIELD_DESCRIPTOR)
        row = self._row_type(fields)
        end = start + num * row.itemsize
        if end > len(data):
            raise self._error(f"truncated: the metadata of {num} samples end at byte {end} of {len(data)}")
        if not end <= table <= len(data):
            raise self._error(
                f"truncated: its allocation table is at byte {table} of {len(data)}; copy or convert it again"
            )
        if (len(data) - table) % ALLOCATION.itemsize:
            raise self._error("truncated: the last entry of its allocation table is incomplete")
        self._metadata_end = end

        metadata = data[start:end].view(row)
        image = self._pick(fields, IMAGE_FIELD, "image", self._image_field)
        assert image is not None
        images = metadata[image]
        self.modes = images["mode"].copy()
        self.heights = images["height"].astype(np.int32)
        self.widths = images["width"].astype(np.int32)
        label = self._pick(fields, INT_FIELD, "label", self._label_field)
        self.labels = np.full(num, -1) if label is None else metadata[label].astype(np.int64)
        self.fields = tuple(
            Field(
                _name(field),
                FIELD_KINDS[int(field["type_id"])],
                {image: "image", label: "label"}.get(f"f{k}"),
            )
            for k, field in enumerate(fields)
        )
        self._locate(images["data_ptr"], data[table:].view(ALLOCATION), end, table)
        self._check_images()

    def _row_type(self, fields: np.ndarray) -> np.dtype:
        for field in fields:
            if int(field["type_id"]) not in FIELD_METADATA:
                raise self._error(
                    f"its field {_name(field)!r} is of type {field['type_id']}, whose size is not known "
                    "(a type defined by whoever wrote the file); write the file again without that field"
                )
        if IMAGE_FIELD not in fields["type_id"]:
            raise self._error(f"none of its fields is an image: {', '.join(map(_name, fields))}")
        return metadata_type(fields["type_id"].tolist())

    def _pick(self, fields: np.ndarray, type_id: int, usual: str, wanted: str | None) -> str | None:
        """Return the field of a type in a row of the metadata: the one wanted, or of the usual name, or the first."""
        of_type = np.flatnonzero(fields["type_id"] == type_id)
        named = of_type[fields["name"][of_type] == (wanted or usual).encode()]
        if wanted is not None and not len(named):
            there = ", ".join(f"{_name(field)} ({FIELD_KINDS[int(field['type_id'])]})" for field in fields)
            raise self._error(
                f"no {FIELD_KINDS[type_id]} field {wanted!r} to read as {usual} ({usual}_field); its fields: {there}"
            )
        return f"f{(named if len(named) else of_type)[0]}" if len(of_type) else None

    def _locate(self, pointers: np.ndarray, table: np.ndarray, low: int, high: int) -> None:
        """Find the payload of every image; check that all payloads are apart and within bytes [low, high)."""
        # an empty payload (FFCV's bytes field allows them) may have the address of its neighbour
        table = table[table["size"] > 0]
        table = table[np.argsort(table["ptr"], kind="stable")]
        begin, size = table["ptr"], table["size"]
        # in this order no sum of two hostile numbers can wrap around
        bad = (begin < low) | (begin > high)
        bad |= size > high - np.minimum(begin, high)
        if bad.any():
            k = int(bad.argmax())
            raise self._error(
                f"a payload of {size[k]} bytes at byte {begin[k]} lies outside the data, {low} to {high}",
                table["sample_id"][k],
            )
        bad = begin[:-1] + size[:-1] > begin[1:]
        if bad.any():
            k = int(bad.argmax())
            raise self._error(f"its payload at byte {begin[k]} runs into the next", table["sample_id"][k])
        if not len(table):
            raise self._error("its allocation table is empty")
        entry = np.minimum(np.searchsorted(begin, pointers), len(table) - 1)
        bad = begin[entry] != pointers
        if bad.any():
            k = int(bad.argmax())
            raise self._error(f"no payload starts at byte {pointers[k]}, where its image should be", k)
        self.offsets = pointers.astype(np.int64)
        self.sizes = size[entry].astype(np.int64)

    def _check_images(self) -> None:
        modes, heights, widths, sizes = self.modes, self.heights, self.widths, self.sizes
        pixels = heights.astype(np.int64) * widths
        is_jpeg = modes == JPEG_MODE
        self._refuse(
            ~is_jpeg & (modes != RAW_MODE), lambda k: f"image mode {modes[k]} is neither jpg (0) nor raw (1)"
        )
        self._refuse(
            (pixels < 1) | (pixels > MAX_PIXELS),
            lambda k: f"an image of {heights[k]}×{widths[k]} pixels; 1 to {MAX_PIXELS} pixels are read",
        )
        self._refuse(
            ~is_jpeg & (sizes != 3 * pixels),
            lambda k: f"{sizes[k]} bytes are no raw image of {heights[k]}×{widths[k]} pixels",
        )
        # a decoder would take memory for all pixels before it finds that they are not there
        self._refuse(
            is_jpeg & (pixels > np.maximum(jpeg.LARGE, jpeg.MAX_PIXELS_PER_BYTE * sizes)),
            lambda k: f"a JPEG of {sizes[k]} bytes cannot hold {heights[k]}×{widths[k]} pixels",
        )

    def _refuse(self, bad: np.ndarray, describe: Callable[[int], str]) -> None:
        """Raise ValueError for the first bad sample, if there is one."""
        if bad.any():
            k = int(bad.argmax())
            raise self._error(describe(k), k)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        """Return pixels (uint8 [h, w, 3], RGB) and label of a sample.  ValueError: it is corrupt."""
        return self.decode(index), int(self.labels[index])

    def is_jpeg(self, index: int) -> bool:
        """Whether the sample is stored as JPEG; otherwise as raw pixels."""
        return bool(self.modes[index] == JPEG_MODE)

    def image_bytes(self, index: int) -> np.ndarray:
        """Return the stored bytes of a sample's image: uint8 [size], read-only, a view of the file."""
        offset = self.offsets[index]
        return self.data[offset : offset + self.sizes[index]]

    @property
    def data(self) -> np.ndarray:
        """uint8: all bytes of the file, read-only, mapped into memory."""
        if self._data is None:
            raise self._error("the reader is closed")
        return self._data

    def will_need(self, indices: np.ndarray) -> None:
        """Ask the operating system to read these samples from the disk ahead of their use; return at once.

        In random order each sample costs a page fault that a decoding thread waits for.  Asked beforehand, the system
        reads many samples at a time.  Does nothing where the system takes no such advice (outside Linux).
        """
        if self._data is None:
            raise self._error("the reader is closed")
        if hasattr(os, "posix_fadvise"):
            for offset, size in zip(
                self.offsets[indices].tolist(), self.sizes[indices].tolist(), strict=True
            ):
                os.posix_fadvise(self._descriptor, offset, size, os.POSIX_FADV_WILLNEED)

    def decode(self, index: int, out: np.ndarray | None = None, fast_dct: bool = False) -> np.ndarray:
        """Return the pixels of a sample; libjpeg-turbo's decoder runs without the GIL.

        Args:
            index: the sample.
            out: uint8, flat, at least 3·h·w: where to write the pixels; None allocates.
            fast_dct: decode with the fast, less accurate inverse DCT that FFCV decodes with.

        Returns:
            uint8 [h, w, 3], RGB, writable: the start of `out`, or an array of its own.

        Raises:
            ValueError: the JPEG is corrupt or does not match the metadata; or `out` is too small.
        """
        payload = self.image_bytes(index)
        height, width = int(self.heights[index]), int(self.widths[index])
        if self.modes[index] == RAW_MODE:
            if out is None:
                out = np.empty(payload.size, np.uint8)
            elif len(out) < payload.size:
                raise self._error(f"{payload.size} bytes do not fit into a buffer of {len(out)}", index)
            pixels = out[: payload.size]
            pixels[...] = payload
            return pixels.reshape(height, width, 3)
        self.check_header(index)  # costs 2 µs; after it, the size of the buffer is that of the metadata
        try:
            return jpeg.decode(payload, fast_dct, out)
        except MemoryError:
            raise
        # any error of a decoder becomes a ValueError, for which the engines replace the sample
        except Exception as error:
            raise self._error(str(error), index) from error

    def check_header(self, index: int) -> None:
        """Check a JPEG's own header against the metadata, and its scans, before a decoder works on it.

        Raises:
            ValueError: it is no JPEG, of another size, neither color nor gray, or has more than 100 scans.
        """
        if self.modes[index] == RAW_MODE:
            return
        height, width = int(self.heights[index]), int(self.widths[index])
        try:
            data = self.image_bytes(index).tobytes()
            jpeg.check_scans(data)
            found_height, found_width, colorspace = jpeg.read_header(data)
            if found_height != height or found_width != width:
                raise ValueError(
                    f"its JPEG is of {found_height}×{found_width} pixels, the metadata say {height}×{width}"
                )
            if colorspace not in ("YCbCr", "Gray", "RGB"):
                raise ValueError(f"its JPEG is {colorspace}, neither color nor gray")
        except ValueError as error:
            raise self._error(str(error), index) from error

    @cached_property
    def fingerprint(self) -> str:
        """Identifies the file's content: a hash of its length, its metadata and some bytes of its payloads."""
        probes = fingerprint_probes(self.offsets, self.sizes)
        parts = (self.data[start : start + length].tobytes() for start, length in probes)
        return fingerprint(self.file_bytes, self.data[: self._metadata_end].data, parts)

    def matches_fingerprint(self, saved: object) -> bool:
        """Whether a saved fingerprint is this file's; fingerprints of version 0.1 are compared as well."""
        return saved in (self.fingerprint, self._legacy_fingerprint)

    @cached_property
    def _legacy_fingerprint(self) -> str:
        return legacy_fingerprint(self.file_bytes, self.data[: self._metadata_end].data)

    @cached_property
    def num_classes(self) -> int:
        """The largest label + 1; 0 where no sample has a label.  ValueError: a label is too large for a class."""
        k = int(self.labels.argmax())
        return count_classes(int(self.labels[k]), f"{self.path}: sample {k}")

    @cached_property
    def class_names(self) -> list[str] | None:
        """Name of each label, from the side-car; None where there is none."""
        names = self.sidecar and self.sidecar.get("class_names")
        return [str(name) for name in names] if isinstance(names, list) else None

    @cached_property
    def sidecar(self) -> dict[str, Any] | None:
        """Content of the side-car; None where there is none, or one that belongs to another file.

        Raises:
            ValueError: the side-car is corrupt.
        """
        found = read_sidecar(self.path)
        # a side-car left over from an earlier file of this name would give the classes wrong names
        if found is None or ("fingerprint" in found and not self.matches_fingerprint(found["fingerprint"])):
            return None
        return found

    def close(self) -> None:
        """Close the file; arrays that were handed out stay valid."""
        self._data = None
        self._close()

    def __enter__(self) -> "BetonReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getstate__(self) -> tuple[Path, str | None, str | None]:
        return self._absolute, self._image_field, self._label_field

    def __setstate__(self, state: tuple[Path, str | None, str | None]) -> None:
        self.__init__(*state)  # type: ignore[misc]

    def _error(self, what: str, sample: int | None = None) -> ValueError:
        where = "" if sample is None else f"sample {sample}: "
        return ValueError(f"{self.path}: {where}{what}")


def _name(field: np.void) -> str:
    return field["name"].decode("ascii", "replace")
