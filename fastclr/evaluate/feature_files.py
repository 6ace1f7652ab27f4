"""Writes features with labels, indices and names as .npz or .parquet, a part at a time."""

import json
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from pipelines import BetonReader
from pipelines.convert.names_file import names_path, unescape
from pipelines.convert.optional import import_optional
from pipelines.system.atomic_file import replacing

PART_ROWS = 8192
"""Rows in memory at a time; also of a row group of Parquet."""


@dataclass(frozen=True, eq=False)
class Table:
    """What is written."""

    features: np.ndarray
    """float32 [N, D]; rows of NaN are left out."""
    labels: np.ndarray
    """int64 [N]; −1 where unknown."""
    names: "Names | None"
    class_names: list[str] | None
    meta: Mapping[str, Any]
    """The encoder, and how its images are made; of JSON's types."""

    @property
    def kept(self) -> np.ndarray:
        """int64: rows that are written."""
        return np.flatnonzero(~np.isnan(self.features[:, 0]))


@dataclass(frozen=True)
class Names:
    """The names of the images of one or several files, read a part at a time."""

    files: tuple[Path, ...]
    count: int
    max_length: int
    """Letters of the longest."""

    def __iter__(self) -> Iterator[str]:
        return _names(self.files)


def find_names(reader: BetonReader) -> Names | None:
    """Return the names that `fastclr convert` wrote beside the files; None if they are missing or of other files."""
    files = tuple(map(names_path, reader.files))
    count = longest = 0
    try:
        written = (reader.sidecar or {}).get("names") if len(files) == 1 else None
        if isinstance(written, dict) and written.get("bytes") != files[0].stat().st_size:
            return None
        for name in _names(files):
            count, longest = count + 1, max(longest, len(name))
    except (OSError, UnicodeDecodeError):
        return None
    return Names(files, count, longest) if count == len(reader) else None


def _names(files: tuple[Path, ...]) -> Iterator[str]:
    for file in files:
        with open(file, encoding="utf-8", newline="\n") as lines:
            for line in lines:
                yield unescape(line.removesuffix("\n"))


def write_npz(path: Path, table: Table) -> None:
    """Write an .npz that `numpy.load` opens; the same table gives the same bytes.

    Members: features, labels, indices, names (if there are names), class_names (likewise), and meta, a string of JSON.

    Raises:
        OSError: the file can't be written.
    """
    kept = table.kept
    with replacing(path) as descriptor:
        try:
            with (
                open(descriptor, "wb", closefd=False) as file,
                zipfile.ZipFile(file, "w", allowZip64=True) as archive,
            ):
                features = table.features
                _member(
                    archive,
                    "features",
                    features.dtype,
                    (len(kept), features.shape[1]),
                    _parts(features, kept),
                )
                _member(archive, "labels", np.dtype(np.int64), kept.shape, _parts(table.labels, kept))
                _member(
                    archive, "indices", np.dtype(np.int64), kept.shape, _parts(kept, np.arange(len(kept)))
                )
                if table.names is not None:
                    dtype = np.dtype(f"<U{max(1, table.names.max_length)}")
                    parts = (np.array(part, dtype) for part in _kept_names(table.names, kept))
                    _member(archive, "names", dtype, kept.shape, parts, zipfile.ZIP_DEFLATED)
                strings = {"meta": np.array(json.dumps(dict(table.meta), sort_keys=True))}
                if table.class_names:
                    strings["class_names"] = np.array(table.class_names)
                for name, array in strings.items():
                    _member(archive, name, array.dtype, array.shape, iter([array]))
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from error


def _member(
    archive: zipfile.ZipFile,
    name: str,
    dtype: np.dtype,
    shape: tuple[int, ...],
    parts: Iterator[np.ndarray],
    compression: int = zipfile.ZIP_STORED,
) -> None:
    # with its default date, no two files of the same features would have the same bytes
    info = zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0))
    info.compress_type = compression
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    with archive.open(info, "w", force_zip64=True) as member:
        np.lib.format.write_array_header_2_0(member, header)
        for part in parts:
            member.write(np.ascontiguousarray(part).tobytes())


def _parts(array: np.ndarray, kept: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(kept), PART_ROWS):
        yield array[kept[start : start + PART_ROWS]]


def _kept_names(names: Names, kept: np.ndarray) -> Iterator[list[str]]:
    whole, position = iter(names), 0
    for start in range(0, len(kept), PART_ROWS):
        part = []
        for index in kept[start : start + PART_ROWS].tolist():
            part.append(next(islice(whole, index - position, None)))
            position = index + 1
        yield part


def write_parquet(path: Path, table: Table) -> None:
    """Write a Parquet file: columns features (a list of D float32), label, index, and name if there are names.

    Class names and the encoder stand in the schema's metadata, as JSON under class_names and meta.

    Raises:
        ValueError: pyarrow is not installed.
        OSError: the file can't be written.
    """
    arrow = import_optional("pyarrow", "parquet", f"{path}")
    parquet = import_optional("pyarrow.parquet", "parquet", f"{path}")
    kept, width = table.kept, table.features.shape[1]
    fields = [
        arrow.field("features", arrow.list_(arrow.float32(), width)),
        arrow.field("label", arrow.int64()),
        arrow.field("index", arrow.int64()),
        *([arrow.field("name", arrow.string())] if table.names is not None else []),
    ]
    metadata = {
        "meta": json.dumps(dict(table.meta), sort_keys=True),
        "class_names": json.dumps(table.class_names),
    }
    schema = arrow.schema(fields, metadata=metadata)
    names = iter(()) if table.names is None else _kept_names(table.names, kept)
    with (
        replacing(path) as descriptor,
        open(descriptor, "wb", closefd=False) as file,
        parquet.ParquetWriter(file, schema) as writer,
    ):
        for start in range(0, len(kept), PART_ROWS):
            rows = kept[start : start + PART_ROWS]
            values = arrow.array(np.ascontiguousarray(table.features[rows]).reshape(-1))
            columns = [
                arrow.FixedSizeListArray.from_arrays(values, width),
                arrow.array(table.labels[rows]),
                arrow.array(rows),
                *([arrow.array(next(names))] if table.names is not None else []),
            ]
            writer.write_table(arrow.Table.from_arrays(columns, schema=schema))


WRITERS: dict[str, Callable[[Path, Table], None]] = {".npz": write_npz, ".parquet": write_parquet}
"""By the suffix of the file."""
