"""Identifies files that were given as a tar but are none, by their first bytes, for a helpful error."""

from pathlib import PurePath

_UNPACK = "unpack it, and give the folder"
_EXPORT = "write its images to files first, one folder per class, or to Parquet"
_IMAGE = "an image", "give the folder that holds it"
_VIDEO = "a video", "write its frames to a folder first"

_KINDS: tuple[tuple[int, bytes, str, str], ...] = (
    (0, b"\x1f\x8b", "a file that is compressed with gzip", "gunzip it first"),
    (0, b"\x1f\x9d", "a file that is compressed with compress", "uncompress it first"),
    (0, b"BZh", "a file that is compressed with bzip2", "bunzip2 it first"),
    (0, b"\xfd7zXZ", "a file that is compressed with xz", "unxz it first"),
    (0, b"]\0\0", "a file that is compressed with lzma", "unlzma it first"),
    (0, b"\x28\xb5\x2f\xfd", "a file that is compressed with zstd", "unzstd it first"),
    (0, b"\x04\x22\x4d\x18", "a file that is compressed with lz4", "unlz4 it first"),
    (0, b"PK\x03\x04", "a zip archive", "give zips and tars in two commands, or with --merge"),
    (0, b"PK\x05\x06", "an empty zip archive", "give one with images, unpacked"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    (0, b"Rar!\x1a\x07", "a RAR archive", _UNPACK),
    (0, b"070701", "a cpio archive", _UNPACK),
    (0, b"!<arch>\n", "an ar archive", _UNPACK),
    (0, b"hsqs", "a squashfs image", "mount it, and give the folder"),
    (0, b"PAR1", "a Parquet file", "give Parquet files and tars in two commands, or with --merge"),
    (0, b"ARROW1", "an Arrow file", _EXPORT),
    (0, b"\xff\xff\xff\xff", "perhaps an Arrow stream", _EXPORT),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file", _EXPORT),
    (16, b"\xde\xc0\xef\xbe", "an LMDB data base", _EXPORT),
    (0, b"SQLite format 3\0", "an SQLite data base", _EXPORT),
    (0, b"\x93NUMPY", "a NumPy array (.npy)", _EXPORT),
    (0, b"MATLAB 5.0", "a MATLAB file", _EXPORT),
    (0, b"\x0a\x23\xd7\xce", "an MXNet RecordIO file", _EXPORT),
    (0, b"\0\0\x08\x03", "an IDX file, as MNIST has it", _EXPORT),
    (0, b"\xff\xd8\xff", *_IMAGE),
    (0, b"\x89PNG", *_IMAGE),
    (0, b"GIF8", *_IMAGE),
    (8, b"WEBP", *_IMAGE),
    (0, b"II*\0", *_IMAGE),
    (0, b"MM\0*", *_IMAGE),
    (4, b"ftypheic", "a HEIC image", "convert it to JPEG, and give the folder that holds it"),
    (4, b"ftypavif", "an AVIF image", "convert it to JPEG, and give the folder that holds it"),
    (4, b"ftyp", *_VIDEO),
    (0, b"\x1a\x45\xdf\xa3", *_VIDEO),
    (8, b"AVI ", *_VIDEO),
    (0, b"%PDF", "a PDF file", "write its images to a folder first"),
    (0, b"version https://git-lfs", "a Git LFS pointer", "fetch the file itself: git lfs pull"),
)
"""Signatures: offset, bytes at that offset, what the file is, what to do."""


def describe_file(start: bytes, name: PurePath, size: int) -> tuple[str, str]:
    """Return what a file is, judged by its first bytes, and what to do with it.

    Args:
        start: the first 4096 bytes.
        name: its name, which tells apart what has no magic number.
        size: bytes of the whole file.

    >>> describe_file(b"ARROW1....", PurePath("a"), 10)[0]
    'an Arrow file'
    """
    if not start:
        return "an empty file", "copy or download it again"
    if start.startswith(b"PK\x03\x04"):
        first = start[30 : 30 + int.from_bytes(start[26:28], "little")]
        if first.endswith(b".npy"):
            return "a file of NumPy arrays (.npz)", _EXPORT
        if first.endswith(b"/data.pkl"):
            return "a file of PyTorch's (torch.save)", _EXPORT
    for offset, magic, kind, remedy in _KINDS:
        if start[offset : offset + len(magic)] == magic:
            return kind, remedy
    return _by_content(start, name, size)


def _by_content(start: bytes, path: PurePath, size: int) -> tuple[str, str]:
    """Return what a file without a known signature is, and what to do with it."""
    suffix, name = path.suffix.lower(), path.name.lower()
    if suffix == ".beton":
        return "a .beton file", "it is converted already: `fastclr info` says what is in it"
    if "tfrecord" in name:
        return "a TFRecord file", _EXPORT
    if start[0] == 0x80 and start[1:2] in (b"\2", b"\3", b"\4", b"\5"):
        return "a Python pickle", f"{_EXPORT} (CIFAR: give cifar10:DIR or cifar100:DIR)"
    if text := _text_start(start):
        if text[:200].lower().lstrip().startswith(("<!doctype html", "<html")):
            return "an HTML page", "the download has failed, it seems: download the file again"
        kinds = {".csv": "a CSV table", ".tsv": "a TSV table", ".json": "JSON", ".jsonl": "JSON lines"}
        return kinds.get(suffix, "text"), "give the folder with the images, and this file as --labels"
    if not start.strip(b"\0"):
        return "a file that starts with zeros", "copy or download it again"
    return f"a file of {size:,} bytes of an unknown kind", "give a folder of images, or a tar"


def _text_start(start: bytes) -> str:
    """Return the first characters of a text file; "" where it is none."""
    for encoding in ("utf-16",) if start[:2] in (b"\xff\xfe", b"\xfe\xff") else ("utf-8",):
        try:
            text = start.decode(encoding)
        except UnicodeDecodeError as error:
            if error.start < len(start) - 4:
                return ""
            text = start[: error.start].decode(encoding)
        if all(letter.isprintable() or letter.isspace() for letter in text.removeprefix("\ufeff")):
            return text.removeprefix("\ufeff")
    return ""
