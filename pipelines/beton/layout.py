"""Where the bytes of a `.beton` file lie (FFCV format, version 2; all numbers little-endian).

    ┌────────┬─────────────────────┬──────────────────┬───────┬────────┬───┬────────┬──────────────────┐
    │ header │ F field descriptors │ metadata, N rows │ zeros │ page 1 │ … │ page P │ allocation table │
    └────────┴─────────────────────┴──────────────────┴───────┴────────┴───┴────────┴──────────────────┘

A page starts at a multiple of the page size.  It holds the payloads (JPEG files or raw pixels) of whole
samples: none straddles two pages, so that a loader may cache page by page.  A row of the metadata points at
the payloads of a sample; how long a payload is, only the allocation table says.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

VERSION = 2

HEADER = np.dtype(
    [
        ("version", "<u2"),
        ("num_fields", "<u2"),
        ("page_size", "<u4"),
        ("num_samples", "<u8"),
        ("alloc_table_ptr", "<u8"),
    ]
)
"""24 bytes at the start of the file."""

FIELD_DESCRIPTOR = np.dtype([("type_id", "u1"), ("name", "S16"), ("arguments", "V1024")])
"""One per field: its type, its name (zero-padded ASCII), and the arguments of its type."""

ALLOCATION = np.dtype([("sample_id", "<u8"), ("ptr", "<u8"), ("size", "<u8")])
"""One per payload, to the end of the file, in any order; `ptr` counts from the start of the file."""

IMAGE = np.dtype([("mode", "u1"), ("width", "<u2"), ("height", "<u2"), ("data_ptr", "<u8")])
"""A sample's image in its row of the metadata: 13 bytes."""

JPEG_MODE, RAW_MODE = 0, 1
"""Values of `mode`: the payload is a JPEG file, or height·width·3 bytes of RGB."""

INT_FIELD, IMAGE_FIELD = 1, 2
_POINTER_AND_SIZE = np.dtype([("ptr", "<u8"), ("size", "<u8")])
FIELD_METADATA: dict[int, np.dtype] = {
    0: np.dtype("<f8"),  # float
    INT_FIELD: np.dtype("<i8"),
    IMAGE_FIELD: IMAGE,
    3: _POINTER_AND_SIZE,  # bytes
    4: np.dtype("<u8"),  # array: a pointer, shape and type are arguments of the field
    5: _POINTER_AND_SIZE,  # JSON
    6: np.dtype("<u8"),  # tensor: as array
}
"""Storage of a field in a row of the metadata, by type id.  Type id 255 is defined by the user who wrote the file; the
file does not say its size."""

FIELD_KINDS = {
    0: "float",
    INT_FIELD: "int",
    IMAGE_FIELD: "image",
    3: "bytes",
    4: "array",
    5: "JSON",
    6: "tensor",
}
"""Name of each field type, by type id."""

MAX_PIXELS = 1 << 28
"""Maximum pixels of an image that is read or written (0.8 GB decoded): bounds the memory that an untrusted file can
make a reader allocate."""
MAX_SIDE = (1 << 16) - 1
"""The largest height or width that the metadata can hold."""
MIN_PAGE_SIZE = 1 << 23
MAX_CLASSES = 1 << 20
"""Maximum number of classes.  An evaluation allocates a column for every class up to the largest label: this bounds the
memory that the labels of an untrusted file can make it take."""


def count_classes(largest_label: int, where: object) -> int:
    """Return the number of classes of a set: its largest label + 1, or 0 if no sample has a label.

    Args:
        largest_label: the largest label of a set, -1 where no sample has one.
        where: the file or set that has the label, for the message.

    Raises:
        ValueError: it is too large for a class.
    """
    if largest_label >= MAX_CLASSES:
        raise ValueError(
            f"{where}: label {largest_label} is no class number: classes are numbered from 0 to at most "
            f"{MAX_CLASSES - 1}; convert the images again with class numbers as labels"
        )
    return max(0, largest_label + 1)


MAX_FIELD_NAME = 16
"""Bytes of a field's name."""


def check_field_names(*names: str) -> None:
    """Raise ValueError where a file cannot have fields of these names."""
    for name in names:
        if not (name.isascii() and name.isprintable() and 1 <= len(name) <= MAX_FIELD_NAME):
            raise ValueError(f"the name of a field must be 1 to {MAX_FIELD_NAME} ASCII letters, got {name!r}")
    if len(set(names)) < len(names):
        raise ValueError(f"two fields of the name {names[0]!r}; the image and the label need different ones")


@dataclass(frozen=True)
class Field:
    """A field of a file."""

    name: str
    kind: str
    """One of `FIELD_KINDS`."""
    read_as: str | None
    """How the reader uses it: as "image" or as "label"; None: it ignores the field."""


def metadata_type(type_ids: list[int]) -> np.dtype:
    """Return the type of a row of the metadata: fields f0, f1, … in order, aligned as a C compiler would."""
    return np.dtype([(f"f{i}", FIELD_METADATA[id]) for i, id in enumerate(type_ids)], align=True)


def page_size(max_side: int) -> int:
    """Return the page size in bytes that fits any image whose longer side is `max_side` pixels, raw or as JPEG.

    8 MiB, or the next power of two that is ≥ 3·max_side²; 1 GiB at most, which holds `MAX_PIXELS` pixels.

    >>> page_size(500) >> 20, page_size(2000) >> 20
    (8, 16)
    """
    pixels = min(max_side * max_side, MAX_PIXELS)
    return max(MIN_PAGE_SIZE, 1 << (3 * pixels - 1).bit_length())


FINGERPRINT_PREFIX = "v2_"
"""Prefix of fingerprints that cover parts of the payloads; those of version 0.1 have no prefix."""
_PROBES, _PROBE_BYTES = 64, 64


def fingerprint_probes(offsets: np.ndarray, sizes: np.ndarray) -> list[tuple[int, int]]:
    """Return the parts of the file, as (first byte, length), that a fingerprint covers besides the metadata.

    They are the 64 bytes in the middle of up to 64 samples' payloads, at even distances: at most 64 reads, whatever the
    file's size.

    Args:
        offsets, sizes: int [N]: first byte and length of the samples' payloads.
    """
    samples = np.unique(np.linspace(0, len(offsets) - 1, min(_PROBES, len(offsets))).astype(np.int64))
    probes = []
    for offset, size in zip(offsets[samples].tolist(), sizes[samples].tolist(), strict=True):
        length = min(int(size), _PROBE_BYTES)
        probes.append((int(offset) + (int(size) - length) // 2, length))
    return probes


def fingerprint(file_bytes: int, head: bytes | memoryview, probes: Iterable[bytes]) -> str:
    """Return "v2_" and 16 hex digits that identify a file.

    Args:
        file_bytes: the file's length.
        head: its bytes up to the metadata's end.
        probes: its bytes at `fingerprint_probes`.
    """
    digest = hashlib.blake2b(file_bytes.to_bytes(8, "little"), digest_size=8, person=b"probes")
    digest.update(head)
    for probe in probes:
        digest.update(probe)
    return FINGERPRINT_PREFIX + digest.hexdigest()


def set_fingerprint(fingerprints: Sequence[str]) -> str:
    """Return what tells a set of files from another, by its files' fingerprints in order; of one file, that file's."""
    if len(fingerprints) == 1:
        return fingerprints[0]
    digest = hashlib.blake2b(" ".join(fingerprints).encode(), digest_size=8, person=b"set")
    return FINGERPRINT_PREFIX + digest.hexdigest()


def legacy_fingerprint(file_bytes: int, head: bytes | memoryview) -> str:
    """Return the fingerprint of version 0.1: 16 hex digits, equal for raw files whose images have equal shapes."""
    digest = hashlib.blake2b(file_bytes.to_bytes(8, "little"), digest_size=8)
    digest.update(head)
    return digest.hexdigest()
