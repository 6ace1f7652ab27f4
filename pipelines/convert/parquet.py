"""Images in Parquet files, such as Hugging Face's: a column of encoded images and one of labels."""

import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.beton.layout import MAX_CLASSES
from pipelines.convert.files import MAX_FILE_MB, check_file_size, unicode_name
from pipelines.convert.names import NameList
from pipelines.convert.optional import import_optional
from pipelines.system.terminal import printable

IMAGE_NAMES = ("image", "img", "jpg", "jpeg", "png", "picture", "image_bytes", "bytes")
LABEL_NAMES = ("label", "labels", "class", "category", "target", "cls", "fine_label")
MAX_GROUP_BYTES = 1 << 32
"""Bytes of the largest row group that is read, unpacked; usual ones have 10 to 500 MB."""
CACHE_BYTES = 1 << 28
"""Bytes of the row groups that are kept, besides the last two: threads that read in order are in one or two."""


class ParquetSource:
    """Images in one or several Parquet files, read one row group at a time, in their order.

    The image column holds encoded images, or structs of their `bytes` and a `path`.  Names of classes are those of
    Hugging Face's features in the schema's metadata, or else the labels themselves where these are text.  A label
    that is null is unknown.

    Args:
        paths: the files, with the same columns.
        columns: names of the columns "image" and "label"; those that are not given are found by the features, or by
            usual names.
        max_file_mb: size limit of one image, in MB; larger ones fail when they are read.
        held: has a file at its path while a block runs: files of other machines are not always there.

    Raises:
        OSError: a file cannot be read.
        ValueError: pyarrow is missing; a file is no Parquet file or corrupt, or it is not clear which columns are
            meant; a label is no class number.
    """

    kind = "parquet"
    class_titles: list[str] | None = None
    sequential = True

    def __init__(
        self,
        paths: list[Path],
        columns: Mapping[str, str] | None = None,
        max_file_mb: int = MAX_FILE_MB,
        held: Callable[[Path], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        import_optional("pyarrow", "parquet", "a Parquet file")
        self.name = unicode_name(
            paths[0].name if len(paths) == 1 else f"{paths[0].name} and {len(paths) - 1} more"
        )
        self._paths, self._max_file_bytes, self._held = paths, max_file_mb * 10**6, held
        self.remarks: list[str] = []
        self._names = NameList()
        """The `path` of each image; "" where it has none."""
        groups: list[tuple[int, int]] = []
        sizes: list[int] = []
        labels: list[Any] = []
        for number, path in enumerate(paths):
            with held(path), _explained(path):
                file = _open(path)
                if number == 0:
                    features = _features(file.schema_arrow)
                    self._image = _image_column(file.schema_arrow, features, columns or {})
                    self._label = _label_column(file.schema_arrow, features, columns or {}, self._image)
                self._check_schema(file.schema_arrow, path)
                for k in range(file.num_row_groups):
                    _check_group(file.metadata.row_group(k), k, path)
                    groups.append((number, k))
                    sizes.append(file.metadata.row_group(k).num_rows)
                self._read_names(file)
                if self._label is not None:
                    column = file.read(columns=[self._label], use_threads=False).column(0)
                    _check_length(len(column), sum(sizes[-file.num_row_groups :]), "its labels")
                    labels.append(column.combine_chunks())
        self._groups = groups
        self._starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
        if not self._starts[-1]:
            raise ValueError(f"{printable(self.name)}: no rows in it")
        self.class_names, self.labels = self._take_labels(labels, features)
        self._cache: OrderedDict[int, _Group] = OrderedDict()
        self._lock = threading.Lock()

    def item(self, index: int) -> str:
        number, row = self._place(index)
        name = self._names[index] or f"row {row}"
        return f"{unicode_name(self._paths[number].name)}/{name}" if len(self._paths) > 1 else name

    def image_names(self) -> NameList:
        """Return the `path` of each image; "" where it has none."""
        return self._names

    def read(self, index: int) -> bytes:
        k = int(np.searchsorted(self._starts, index, "right")) - 1
        value = self._group(k)[index - int(self._starts[k])].as_py()
        if isinstance(value, dict):
            path = value.get("path")
            value = value.get("bytes")
            if value is None and path:
                raise ValueError(
                    f"no image bytes, only a path ('{printable(path, 100)}'); store the images themselves in the table"
                )
        if value is None:
            raise ValueError("no image bytes (null)")
        check_file_size(len(value), self._max_file_bytes)
        return bytes(value)

    def _place(self, index: int) -> tuple[int, int]:
        """Return the number of a row's file, and the row in it."""
        k = int(np.searchsorted(self._starts, index, "right")) - 1
        number, group = self._groups[k]
        return number, index - int(self._starts[k - group])

    def _group(self, k: int) -> Any:
        """Return the image column of a row group, which the first thread that asks for it reads."""
        with self._lock:
            group = self._cache.get(k)
            if group is None:
                group = self._cache[k] = _Group()
                while len(self._cache) > 2 and sum(g.num_bytes for g in self._cache.values()) > CACHE_BYTES:
                    self._cache.popitem(last=False)
            self._cache.move_to_end(k)
        with group.lock:
            if group.column is None and group.error is None:
                number, in_file = self._groups[k]
                try:
                    with self._held(self._paths[number]), _explained(self._paths[number]):
                        table = _open(self._paths[number]).read_row_group(
                            in_file, [self._image], use_threads=False
                        )
                        _check_length(
                            table.num_rows, int(self._starts[k + 1] - self._starts[k]), f"row group {in_file}"
                        )
                        group.column, group.num_bytes = table.column(0), table.nbytes
                except (OSError, ValueError) as error:
                    group.error = error
        if group.error is not None:
            raise ValueError(" ".join(str(group.error).split()))
        return group.column

    def _check_schema(self, schema: Any, path: Path) -> None:
        for column in (self._image, self._label):
            if column is not None and column not in schema.names:
                raise ValueError(
                    f"{printable(path)}: no column {printable(column)!r}, which {printable(self._paths[0].name)} has; "
                    "convert files with the same columns together"
                )

    def _read_names(self, file: Any) -> None:
        """Add the names of a file's images, without reading the images."""
        import pyarrow.types as types

        kind = file.schema_arrow.field(self._image).type
        rows = sum(file.metadata.row_group(k).num_rows for k in range(file.num_row_groups))
        at = kind.get_field_index("path") if types.is_struct(kind) else -1
        if at >= 0 and _is_text(kind.field(at).type):
            # a dot in the column's own name would mean another leaf
            values = file.read(columns=[f"{self._image}.path"], use_threads=False).column(0)
            _check_length(len(values), rows, "its paths")
            for value in values.to_pylist():
                self._names.append((value or {}).get("path") or "")
        else:
            for _ in range(rows):
                self._names.append("")

    def _take_labels(self, parts: list[Any], features: dict[str, Any]) -> tuple[list[str] | None, np.ndarray]:
        """Return class names, and int64 [N] labels."""
        if self._label is None:
            self.remarks.append("no labels: no column of them (--columns label=NAME)")
            return None, np.full(self._starts[-1], -1)
        feature = features.get(self._label) or {}
        names = feature.get("names") if feature.get("_type") == "ClassLabel" else None
        with _explained(self._paths[0]):
            names, labels = _numbered(parts, names, self._label)
        if num_unknown := int(np.count_nonzero(labels < 0)):
            self.remarks.append(f"{num_unknown:,} rows have no label")
        bad = np.flatnonzero((labels >= (len(names) if names else MAX_CLASSES)) | (labels < -1))
        if len(bad):
            what = (
                f"one of its {len(names):,} classes"
                if names
                else f"a class number (0 to {MAX_CLASSES - 1:,})"
            )
            raise ValueError(
                f"{printable(self.name)}: '{printable(self.item(int(bad[0])))}' has label {labels[bad[0]]}, not "
                f"{what}; correct it, or choose another column with --columns label=NAME"
            )
        self.remarks.append(f"labels from column {printable(self._label)!r}")
        return names, labels


class _Group:
    """A row group that is or will be read."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.column: Any = None
        self.num_bytes = 0
        self.error: Exception | None = None


class _explained:
    """Turns what pyarrow raises into ValueErrors that name the file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        import pyarrow

        if isinstance(error, pyarrow.ArrowException) and not isinstance(error, OSError):
            reason = printable(" ".join(str(error).split()), 200)
            raise ValueError(f"{printable(self._path)}: corrupt, or no Parquet file ({reason})") from error
        if isinstance(error, OSError) and error.errno is None:  # pyarrow's name for corrupt data
            reason = printable(" ".join(str(error).split()), 200)
            raise ValueError(f"{printable(self._path)}: corrupt ({reason}); download it again") from error
        if isinstance(error, UnicodeDecodeError):
            raise ValueError(
                f"{printable(self._path)}: corrupt, or its text is not UTF-8 ({error.reason} at byte {error.start}); "
                "write it again as UTF-8"
            ) from error
        if type(error) is ValueError and self._path.name not in str(error):
            raise ValueError(f"{printable(self._path)}: {error}") from error


def is_parquet(path: Path) -> bool:
    """Whether a file is meant for a Parquet file: by its suffix, or by its first bytes."""
    if path.suffix.lower() == ".parquet":
        return True
    with open(path, "rb") as file:
        return file.read(4) == b"PAR1"


def _open(path: Path) -> Any:
    import pyarrow.parquet as parquet

    return parquet.ParquetFile(path)


def _check_length(found: int, expected: int, what: str) -> None:
    """Raise ValueError where a file holds another number of rows than its footer says."""
    if found != expected:
        raise ValueError(
            f"corrupt: {what} has {found:,} rows, and {expected:,} by the footer; download it again"
        )


def _check_group(group: Any, k: int, path: Path) -> None:
    if group.total_byte_size > MAX_GROUP_BYTES:
        raise ValueError(
            f"{printable(path)}: row group {k} has {group.total_byte_size / 1e9:.1f} GB, more than the "
            f"{MAX_GROUP_BYTES / 1e9:.1f} GB that are read; write it with smaller row groups"
        )


def _features(schema: Any) -> dict[str, Any]:
    """Return what Hugging Face's metadata say of each column; {} where there are none."""
    try:
        content: Any = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = content["info"]["features"]
        return {name: value for name, value in features.items() if isinstance(value, dict)}
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        return {}


def _is_image(kind: Any) -> bool:
    import pyarrow.types as types

    if types.is_struct(kind):
        at = kind.get_field_index("bytes")
        return at >= 0 and _is_bytes(kind.field(at).type)
    return _is_bytes(kind)


def _is_bytes(kind: Any) -> bool:
    import pyarrow.types as types

    return types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind)


def _is_text(kind: Any) -> bool:
    import pyarrow.types as types

    return types.is_string(kind) or types.is_large_string(kind)


def _image_column(schema: Any, features: dict[str, Any], columns: Mapping[str, str]) -> str:
    if "image" in columns:
        name = _named(schema, columns["image"])
        if not _is_image(schema.field(name).type):
            raise ValueError(
                f"column {printable(name)!r} is of type {printable(schema.field(name).type, 80)} and holds no image "
                "bytes; it must be binary, or a struct with binary `bytes` (--columns image=NAME)"
            )
        return name
    possible = [field.name for field in schema if _is_image(field.type)]
    by_feature = [name for name in possible if (features.get(name) or {}).get("_type") == "Image"]
    by_name = [name for name in IMAGE_NAMES if name in possible]
    return _only(by_feature or by_name[:1] or possible, "image", schema)


def _label_column(
    schema: Any, features: dict[str, Any], columns: Mapping[str, str], image: str
) -> str | None:
    if "label" in columns:
        return _named(schema, columns["label"])
    by_feature = [name for name in schema.names if (features.get(name) or {}).get("_type") == "ClassLabel"]
    by_name = [name for name in LABEL_NAMES if name in schema.names and name != image]
    if not (by_feature or by_name):
        return None
    return _only(by_feature or by_name[:1], "label", schema)


def _only(names: list[str], column: str, schema: Any) -> str:
    if len(names) == 1:
        return names[0]
    found = f"{len(names)} columns may be" if names else "no column is"
    raise ValueError(
        f"{found} the {column}; the columns are {printable(', '.join(schema.names), 200)}: name it with --columns "
        f"{column}=NAME"
        + ("" if names or column == "label" else " (images must be stored as their files' bytes)")
    )


def _named(schema: Any, name: str) -> str:
    if schema.names.count(name) != 1:
        raise ValueError(
            f"--columns names {printable(name)!r}; the columns are {printable(', '.join(schema.names), 200)}"
        )
    return name


def _numbered(parts: list[Any], names: list[str] | None, column: str) -> tuple[list[str] | None, np.ndarray]:
    """Return class names, and int64 [N] labels, of the parts of a label column."""
    import pyarrow as pa
    import pyarrow.compute as compute
    import pyarrow.types as types

    values = pa.chunked_array(parts) if len(parts) > 1 else pa.chunked_array([parts[0]])
    if types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    if types.is_integer(values.type):
        labels = compute.fill_null(values.cast(pa.int64()), -1).to_numpy()
        return ([str(name) for name in names] if names else None), labels
    if not _is_text(values.type):
        raise ValueError(
            f"column {printable(column)!r} is of type {printable(values.type, 80)}; labels must be integers or text "
            "(--columns label=NAME)"
        )
    found = sorted(value for value in compute.unique(values).to_pylist() if value is not None)
    numbers = compute.index_in(values, pa.array(found, values.type))
    return found, compute.fill_null(numbers.cast(pa.int64()), -1).to_numpy()
