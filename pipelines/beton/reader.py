"""Reads `.beton` files, its own and FFCV's, and trusts none of them."""

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.beton import jpeg
from pipelines.beton.layout import (
    HEADER,
    JPEG_MODE,
    RAW_MODE,
    Field,
    count_classes,
    fingerprint,
    fingerprint_probes,
    legacy_fingerprint,
    set_fingerprint,
)
from pipelines.beton.mapping import FileMap
from pipelines.beton.sets import Files, find_files, index_path, shards_of
from pipelines.beton.sidecar import SET_FORMAT, read_content, read_sidecar
from pipelines.beton.tables import Columns, check_layout, read_samples


class BetonReader:
    """The samples of a `.beton` file, or of several as one data set, decoded on demand from a memory map.

    All offsets and sizes in a file are checked when it opens, for all samples at once: a corrupt or hostile file is
    refused with a reason, and one that opens is safe to read.  One reader serves any number of threads; a pickled one
    opens the files again.

    A file that FFCV wrote may hold further fields.  The image is the field of FFCV's image type, and the label that of
    its int type.  Where there are several, it is the one named "image" ("label"), or else the first.

    Args:
        files: the file; or several: a list, a pattern such as "train-*.beton", a folder of shards, or the index of a
            set (`pipelines.beton.sets`).  Their samples are numbered through, in the order of the files.
        image_field, label_field: names of the fields to read; None: found as above.

    Raises:
        OSError: a file cannot be opened.
        ValueError: one is no `.beton` file, or a corrupt one, and the message names the first corrupt sample; or shards
            are missing, or have other classes.

    >>> with BetonReader("train.beton") as reader:  # doctest: +SKIP
    ...     pixels, label = reader[0]
    """

    path: Path
    """What messages call the data set: the file; of several, what they were given as."""
    files: tuple[Path, ...]
    first_samples: np.ndarray
    """int64 [F + 1]: number of the first sample of each file, and at last of all samples."""
    heights: np.ndarray
    """int32 [N], pixels, ≥ 1."""
    widths: np.ndarray
    """int32 [N], pixels, ≥ 1; heights · widths ≤ 2²⁸."""
    labels: np.ndarray
    """int64 [N]; −1 where unknown."""
    modes: np.ndarray
    """uint8 [N]: `layout.JPEG_MODE` or `layout.RAW_MODE`."""
    offsets: np.ndarray
    """int64 [N]: first byte of the image's payload in `data`; of one file, from its start."""
    sizes: np.ndarray
    """int64 [N]: bytes of the image's payload."""
    file_bytes: int
    """Bytes of all files."""
    page_size: int
    """Of several files, the largest."""
    fields: tuple[Field, ...]
    """The fields of the first file, and which of them are read."""

    def __init__(self, files: Files, image_field: str | None = None, label_field: str | None = None) -> None:
        self._image_field, self._label_field = image_field, label_field
        found = find_files(files)
        self.files, self.path = found.files, found.path
        # another process that opens the files again may have another working directory
        self._absolute = [file.absolute() for file in found.files]
        self._map: FileMap | None = None
        map = FileMap(self.files, min_bytes=HEADER.itemsize)
        try:
            self._open(map)
        except BaseException:
            map.close()
            raise
        self._map = map
        if len(self.files) > 1:
            self._check_class_names()

    def _open(self, map: FileMap) -> None:
        """Check the tables of every file, and take from them what the samples need."""
        layouts = [
            check_layout(path, map.file(k), self._image_field, self._label_field)
            for k, path in enumerate(self.files)
        ]
        self.first_samples = np.cumsum([0, *(layout.num_samples for layout in layouts)])
        columns = Columns.empty(int(self.first_samples[-1]))
        for k, (path, layout) in enumerate(zip(self.files, layouts, strict=True)):
            own = columns.of(*self.first_samples[k : k + 2])
            read_samples(path, layout, own)
            own.offsets[:] += map.starts[k]
        self.heights, self.widths, self.labels = columns.heights, columns.widths, columns.labels
        self.modes, self.offsets, self.sizes = columns.modes, columns.offsets, columns.sizes
        self.file_bytes = int(map.sizes.sum())
        self.page_size, self.fields = max(layout.page_size for layout in layouts), layouts[0].fields
        self._metadata_ends = [layout.metadata_end for layout in layouts]

    def _check_class_names(self) -> None:
        """Raise ValueError where a file's labels mean other classes than those of another."""
        if self._index is not None:
            return
        first: tuple[int, Any] | None = None
        for k, path in enumerate(self.files):
            names = (read_sidecar(path) or {}).get("class_names")
            if names is None:
                continue
            first = first or (k, names)
            # a side-car that stayed behind when its file was written anew does not count
            if names != first[1] and self._sidecar(k) and self._sidecar(first[0]):
                raise ValueError(
                    f"{path}: its class_names are not those of {self.files[first[0]].name}, so its labels mean other "
                    "classes; convert the images as one set"
                )

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
        """uint8: all bytes of the files, read-only, mapped into memory; each file begins at a page of memory."""
        return self._opened.data

    @property
    def _opened(self) -> FileMap:
        if self._map is None:
            raise self._error("the reader is closed")
        return self._map

    def will_need(self, indices: np.ndarray) -> None:
        """Ask the operating system to read these samples from the disk ahead of their use; return at once.

        In random order each sample costs a page fault that a decoding thread waits for.  Asked beforehand, the system
        reads many samples at a time.  Does nothing where the system takes no such advice (outside Linux).
        """
        self._opened.will_need(self.offsets[indices], self.sizes[indices])

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
        """Identifies the content of the files: a hash of their lengths, their metadata and some bytes of payloads."""
        return set_fingerprint([self._fingerprint(k) for k in range(len(self.files))])

    def _fingerprint(self, number: int) -> str:
        """Return the fingerprint of a file."""
        if number not in self._fingerprints:
            own, data = slice(*self.first_samples[number : number + 2]), self._opened.file(number)
            probes = fingerprint_probes(self.offsets[own] - self._opened.starts[number], self.sizes[own])
            parts = (data[start : start + length].tobytes() for start, length in probes)
            head = data[: self._metadata_ends[number]].data
            self._fingerprints[number] = fingerprint(len(data), head, parts)
        return self._fingerprints[number]

    @cached_property
    def _fingerprints(self) -> dict[int, str]:
        return {}

    def matches_fingerprint(self, saved: object) -> bool:
        """Whether a saved fingerprint is this data set's; fingerprints of version 0.1 are compared as well."""
        return saved in (self.fingerprint, self._legacy_fingerprint)

    @cached_property
    def _legacy_fingerprint(self) -> str:
        """What version 0.1 saved, which knew no sets of several files."""
        if len(self.files) > 1:
            return self.fingerprint
        return legacy_fingerprint(self.file_bytes, self.data[: self._metadata_ends[0]].data)

    @cached_property
    def num_classes(self) -> int:
        """The largest label + 1; 0 where no sample has a label.  ValueError: a label is too large for a class."""
        k = int(self.labels.argmax())
        return count_classes(int(self.labels[k]), self.where(k))

    @cached_property
    def class_names(self) -> list[str] | None:
        """Name of each label, from the index or a side-car; None where there is none."""
        return self._class_table("class_names")

    @cached_property
    def class_titles(self) -> list[str] | None:
        """Readable name of each label where the class names are codes, such as ImageNet's; None where there is none."""
        return self._class_table("class_titles")

    def _class_table(self, key: str) -> list[str] | None:
        sidecars = (self._index,) if self._index else map(self._sidecar, range(len(self.files)))
        tables = ((sidecar or {}).get(key) for sidecar in sidecars)
        table = next((table for table in tables if isinstance(table, list)), None)
        return None if table is None else [str(entry) for entry in table]

    @cached_property
    def sidecar(self) -> dict[str, Any] | None:
        """Content of the side-car, or of a set's index; None where there is none, or one that belongs to other files.

        Raises:
            ValueError: it is corrupt.
        """
        if len(self.files) == 1:
            return self._sidecar(0)
        index = self._index
        return index if index is not None and index.get("fingerprint") == self.fingerprint else None

    def _sidecar(self, number: int) -> dict[str, Any] | None:
        """Return the side-car of a file; None where there is none that was written with this very file."""
        found = read_sidecar(self.files[number])
        if found is None or "fingerprint" not in found:
            return found
        # one that stayed behind when its file was written anew would give the classes wrong names
        return (
            found if found["fingerprint"] in (self._fingerprint(number), self._legacy_fingerprint) else None
        )

    @cached_property
    def _index(self) -> dict[str, Any] | None:
        """The index of the set that these files are, by their names and lengths."""
        path = index_path(self.files) if len(self.files) > 1 else None
        content = None if path is None else read_content(path)
        if content is None or content["format"] != SET_FORMAT:
            return None
        sizes = self._opened.sizes.tolist()
        ours = [(file.name, size) for file, size in zip(self.files, sizes, strict=True)]
        return content if shards_of(content) == ours else None

    def where(self, index: int) -> str:
        """Return how messages name a sample: by its file and, of several, by its numbers in the file and the set."""
        if len(self.files) == 1:
            return f"{self.path}: sample {index}"
        number = int(np.searchsorted(self.first_samples, index, "right")) - 1
        return (
            f"{self.files[number]}: sample {index - self.first_samples[number]} (sample {index} of the set)"
        )

    def close(self) -> None:
        """Close the files; arrays that were handed out stay valid."""
        if self._map is not None:
            self._map.close()
        self._map = None

    def __enter__(self) -> "BetonReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getstate__(self) -> tuple[list[Path], Path, str | None, str | None]:
        return self._absolute, self.path, self._image_field, self._label_field

    def __setstate__(self, state: tuple[list[Path], Path, str | None, str | None]) -> None:
        files, self_path, *fields = state
        self.__init__(files, *fields)  # type: ignore[misc]
        self.path = self_path

    def _error(self, what: str, sample: int | None = None) -> ValueError:
        where = f"{self.path}" if sample is None else self.where(sample)
        return ValueError(f"{where}: {what}")
