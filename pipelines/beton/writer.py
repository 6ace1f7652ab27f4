"""Writes `.beton` files, sample by sample."""

import os
from contextlib import ExitStack
from os import PathLike
from pathlib import Path

import numpy as np

from pipelines.beton.jpeg import read_header
from pipelines.beton.layout import (
    ALLOCATION,
    FIELD_DESCRIPTOR,
    HEADER,
    IMAGE_FIELD,
    INT_FIELD,
    JPEG_MODE,
    MAX_PIXELS,
    MAX_SIDE,
    RAW_MODE,
    VERSION,
    check_field_names,
    fingerprint,
    fingerprint_probes,
    metadata_type,
    page_size,
)
from pipelines.system.atomic_file import replacing, write_at

BUFFER_BYTES = 1 << 22
"""Payload bytes that are collected before they are written."""


class BetonWriter:
    """Writes a `.beton` file with an image and a label per sample, laid out as by FFCV's writer.

    A context manager.  Samples are streamed to a hidden file beside `path`, which is renamed to `path` when the block
    ends and removed when it raises.  Memory: 32 bytes per sample.

    Args:
        path: the file to write; an older one is replaced.
        num_samples: maximum number of samples; the metadata, which come before the images, get room for so many.
        max_side: longer side of the largest image, pixels.  It decides the page size, which bounds the stored bytes of
            an image: 8 MiB up to 1672 pixels, then the next power of two ≥ 3·max_side².
        image_field, label_field: names of the two fields, which FFCV's pipelines are keyed by.

    Raises:
        OSError: the folder is missing or not writable, or there is no space left.
        ValueError: no sample was added, or more than `num_samples`.

    >>> with BetonWriter("two.beton", num_samples=2) as writer:  # doctest: +SKIP
    ...     writer.add_jpeg(Path("cat.jpg").read_bytes(), label=3)
    ...     writer.add_raw(np.zeros((32, 32, 3), np.uint8), label=5)
    """

    def __init__(
        self,
        path: str | PathLike[str],
        num_samples: int,
        max_side: int = 500,
        image_field: str = "image",
        label_field: str = "label",
    ) -> None:
        if num_samples < 1 or max_side < 1:
            raise ValueError(f"num_samples and max_side must be ≥ 1, got {num_samples} and {max_side}")
        check_field_names(image_field, label_field)
        self._field_names = [image_field.encode(), label_field.encode()]
        self.path = Path(path)
        self.page_size = page_size(max_side)
        self.count = 0
        """Samples added so far."""
        self.file_bytes = 0
        """Bytes of the whole file; known after `finish`."""
        self.fingerprint = ""
        """The fingerprint that `BetonReader` will report; known after `finish`."""
        self._rows = np.zeros(num_samples, metadata_type([IMAGE_FIELD, INT_FIELD]))
        self._sizes = np.zeros(num_samples, np.uint64)
        self._metadata_start = HEADER.itemsize + 2 * FIELD_DESCRIPTOR.itemsize
        self._end = _round_up(self._metadata_start + self._rows.nbytes, self.page_size)
        # payloads still to be written; they will end at byte _end of the file
        self._pending: list[bytes] = []
        self._pending_bytes = 0
        self._file = -1

    def __enter__(self) -> "BetonWriter":
        self._stack = ExitStack()
        self._file = self._stack.enter_context(replacing(self.path))
        return self

    def __exit__(self, *error: object) -> None:
        if error[0] is None:
            with self._stack:
                self.finish()
        else:
            self._stack.__exit__(*error)  # type: ignore[arg-type]

    def add_jpeg(self, data: bytes, label: int = -1) -> None:
        """Append a JPEG file, byte for byte.

        Raises:
            ValueError: its header is corrupt, it is too large, or it is neither color nor gray.
            OSError: no space left.
        """
        height, width, colorspace = read_header(data)
        if colorspace not in ("YCbCr", "Gray", "RGB"):
            raise ValueError(f"a JPEG in {colorspace} cannot be stored; convert it to color or gray")
        self._add(JPEG_MODE, data, height, width, label)

    def add_raw(self, pixels: np.ndarray, label: int = -1) -> None:
        """Append the pixels of an image: uint8 [h, w, 3], RGB.

        Raises:
            ValueError: the array has another shape or type, or more bytes than a page.
            OSError: no space left.
        """
        if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
            raise ValueError(f"pixels must be uint8 [h, w, 3], got {pixels.dtype} {list(pixels.shape)}")
        self._add(RAW_MODE, pixels.tobytes(), pixels.shape[0], pixels.shape[1], label)

    def _add(self, mode: int, payload: bytes, height: int, width: int, label: int) -> None:
        if self._file < 0 or self.file_bytes:
            raise ValueError(
                f"{self.path}: samples are added inside the `with` block of the writer, before finish()"
            )
        if self.count == len(self._rows):
            raise ValueError(f"{self.path}: more samples than the {len(self._rows)} that were announced")
        if not (0 < height <= MAX_SIDE and 0 < width <= MAX_SIDE and height * width <= MAX_PIXELS):
            raise ValueError(
                f"an image of {height}×{width} pixels does not fit the format: sides ≤ {MAX_SIDE}, "
                f"{MAX_PIXELS} pixels"
            )
        size = len(payload)
        if size > self.page_size:
            raise ValueError(f"an image of {size} bytes does not fit into a page of {self.page_size}")
        start = self._end
        if start // self.page_size != (start + size - 1) // self.page_size:
            self._flush()
            start = _round_up(start, self.page_size)
        self._rows[self.count] = ((mode, width, height, start), label)
        self._sizes[self.count] = size
        self._pending.append(payload)
        self._pending_bytes += size
        self._end = start + size
        self.count += 1
        if self._pending_bytes >= BUFFER_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._pending:
            write_at(self._file, b"".join(self._pending), self._end - self._pending_bytes, self.path)
            self._pending, self._pending_bytes = [], 0

    def finish(self) -> None:
        """Write all that surrounds the payloads; the end of the block calls it.  No sample can be added afterwards."""
        if self.file_bytes:
            return
        if not self.count:
            raise ValueError(f"{self.path}: no sample to write")
        self._flush()
        # pages have their full size: the gaps behind samples are holes in the file, which read as zeros
        table = _round_up(self._end, self.page_size)
        fields = np.zeros(2, FIELD_DESCRIPTOR)
        fields["type_id"], fields["name"] = [IMAGE_FIELD, INT_FIELD], self._field_names
        header = np.array((VERSION, len(fields), self.page_size, self.count, table), HEADER)
        rows = self._rows[: self.count]
        write_at(self._file, header.tobytes() + fields.tobytes(), 0, self.path)
        # piece by piece, because a copy of either table would double the memory
        step = 1 << 16
        for low in range(0, self.count, step):
            piece = rows[low : low + step]
            offset = self._metadata_start + low * rows.itemsize
            write_at(self._file, piece.tobytes(), offset, self.path)
            entries = np.empty(len(piece), ALLOCATION)
            entries["sample_id"] = np.arange(low, low + len(piece))
            entries["ptr"], entries["size"] = piece["f0"]["data_ptr"], self._sizes[low : low + len(piece)]
            write_at(self._file, entries.tobytes(), table + low * ALLOCATION.itemsize, self.path)
        self.file_bytes = table + self.count * ALLOCATION.itemsize
        assert os.fstat(self._file).st_size == self.file_bytes
        head = os.pread(self._file, self._metadata_start + rows.nbytes, 0)
        probes = fingerprint_probes(rows["f0"]["data_ptr"], self._sizes[: self.count])
        self.fingerprint = fingerprint(
            self.file_bytes, head, (os.pread(self._file, length, start) for start, length in probes)
        )


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
