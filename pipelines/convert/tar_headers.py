"""Walks the headers of an uncompressed tar and trusts no number in them.

A tar is a sequence of 512-byte headers, each followed by its member's bytes, padded to 512; blocks of zeros end
it (POSIX.1-2024, pax, "ustar Interchange Format").  Python's `tarfile` follows negative and huge sizes, so
headers are checked here: every step goes forward, and every size lies within the file.
"""

import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath
from typing import BinaryIO, Literal, NamedTuple

from pipelines.convert.file_kinds import describe_file
from pipelines.system.terminal import printable

BLOCK = 512
MAX_EXTENSION_BYTES = 1 << 20
"""Maximum size in bytes of a header extension (a long name, pax records); a path takes a few kilobytes at most."""

_ZEROS = bytes(BLOCK)
_CHUNK = 1 << 20
_REGULAR, _V7_REGULAR, _HARD_LINK, _SYMBOLIC_LINK, _CONTIGUOUS = b"0", b"\0", b"1", b"2", b"7"
_WITHOUT_DATA = (b"3", b"4", b"5", b"6")
"""Devices, folders and pipes."""
_LONG_NAME, _LONG_TARGET, _GNU_SPARSE, _NEXT_VOLUME = b"L", b"K", b"S", b"M"
_PAX, _SOLARIS_PAX, _SHARED_PAX = b"x", b"X", b"g"


class Member(NamedTuple):
    """One member of a tar."""

    name: str
    kind: Literal["file", "hard link", "symbolic link", "other"]
    offset: int
    """First byte of its content."""
    size: int
    """Bytes of its content; −1 where it is stored as a sparse file, with holes left out."""
    target: str = ""
    """Target of a link."""


class _HeaderError(ValueError):
    """Says what is wrong with a header; the walk adds where it is."""


class TarWalk:
    """Iterates over the members of an open tar, including those of further archives concatenated to it.

    A tar that is a member of another one is walked where it lies: no step leaves its bytes.

    Args:
        file: the tar, or the file that holds it, open for reading; between two members its position may be moved.
        path: its path, for errors.
        inner: names of the tars on the way to a tar within tars, for errors.
        start: its first byte in `file`.
        size: its bytes; None: up to the end of `file`.

    Raises:
        ValueError: the file is no tar, or a header is corrupt; it names the tar and the member.
    """

    def __init__(
        self, file: BinaryIO, path: Path, inner: Sequence[str] = (), start: int = 0, size: int | None = None
    ) -> None:
        self._file, self._path, self._inner, self._start = file, path, inner, start
        file_end = file.seek(0, os.SEEK_END)
        self._end = file_end if size is None else min(start + size, file_end)
        self._last = ""
        self.num_archives = 1
        self.has_end_marker = False
        """Whether the last archive ends with its end marker, zeros; known after the walk."""

    def __iter__(self) -> Iterator[Member]:
        at = self._start
        shared: dict[str, str] = {}
        own: dict[str, str] = {}
        if at >= self._end:
            raise self._no_tar()
        while at < self._end:
            block = self._read(at, BLOCK)
            if block == _ZEROS:
                at = self._after_zeros(at)
                shared, own = {}, {}
                continue
            self.has_end_marker = False
            try:
                _check_sum(block)
            except _HeaderError as error:
                raise self._no_header(at, block, error) from None
            try:
                kind, size, start = block[156:157], _number(block[124:136], "size"), at + BLOCK
                if kind in (_PAX, _SOLARIS_PAX, _SHARED_PAX, _LONG_NAME, _LONG_TARGET):
                    found = self._extension(kind, start, size)
                    (shared if kind == _SHARED_PAX else own).update(found)
                    at = start + _padded(size)
                    continue
                records = {**shared, **own} if shared else own
                own = {}
                member, at = self._member(block, kind, start, size, records)
            except _HeaderError as error:
                raise self._corrupt(at, _name(block), error) from None
            self._last = member.name
            yield member
        if own:
            raise self._corrupt(at, self._last, "the file ends before the member of the last long name")

    def _member(
        self, block: bytes, kind: bytes, start: int, size: int, records: dict[str, str]
    ) -> tuple[Member, int]:
        """Return a member, and where the next header is."""
        name = records.get("GNU.sparse.name") or records.get("path") or _name(block)
        if kind in (_HARD_LINK, _SYMBOLIC_LINK):
            target = records.get("linkpath") or _text(block[157:257])
            words: Literal["hard link", "symbolic link"] = (
                "hard link" if kind == _HARD_LINK else "symbolic link"
            )
            return Member(name, words, start, 0, target), start
        if kind in _WITHOUT_DATA or (kind == _V7_REGULAR and name.endswith("/")):
            return Member(name, "other", start, 0), start
        if kind == _NEXT_VOLUME:
            raise _HeaderError("goes on from another volume; join the volumes into one tar")
        if size_record := records.get("size"):
            size = _decimal(size_record, "pax size")
        if kind == _GNU_SPARSE:
            start = self._after_sparse_map(block, start)
        if start + size > self._end:
            raise _HeaderError(
                f"has {size:,} bytes by its header, but the file ends after {max(0, self._end - start):,}"
            )
        is_sparse = kind == _GNU_SPARSE or any(key.startswith("GNU.sparse.") for key in records)
        is_file = kind in (_REGULAR, _V7_REGULAR, _CONTIGUOUS, _GNU_SPARSE)
        member = Member(name, "file" if is_file else "other", start, -1 if is_sparse else size)
        return member, start + _padded(size)

    def _extension(self, kind: bytes, start: int, size: int) -> dict[str, str]:
        """Return what a long name or pax records say about the next member."""
        if size > MAX_EXTENSION_BYTES:
            raise _HeaderError(
                f"a header extension of {size:,} bytes; up to {MAX_EXTENSION_BYTES:,} are read"
            )
        if start + size > self._end:
            raise _HeaderError(f"a header extension of {size:,} bytes goes beyond the end of the file")
        data = self._read(start, size)
        if kind in (_LONG_NAME, _LONG_TARGET):
            return {"path" if kind == _LONG_NAME else "linkpath": _text(data)}
        return _pax_records(data)

    def _after_sparse_map(self, block: bytes, start: int) -> int:
        """Return where the content of an old GNU sparse member starts: its map may take further blocks."""
        more = block[482]
        while more:
            map_block = self._read(start, BLOCK)
            if len(map_block) < BLOCK:
                raise _HeaderError("its sparse map goes beyond the end of the file")
            more, start = map_block[504], start + BLOCK
        return start

    def _after_zeros(self, at: int) -> int:
        """Return where a concatenated archive starts, or the end of the file."""
        while at < self._end:
            at = self._next_data(at)
            chunk = self._read(at, _CHUNK)
            if not chunk:
                break
            content = chunk.lstrip(b"\0")
            if content:
                at += (len(chunk) - len(content)) // BLOCK * BLOCK
                self.num_archives += 1
                return at
            at += len(chunk)
        self.has_end_marker = True
        return at

    def _next_data(self, at: int) -> int:
        """Return the position of the next block that the file system stores: holes may be terabytes long."""
        if not hasattr(os, "SEEK_DATA") or isinstance(self._file, io.BytesIO):
            return at
        descriptor = self._file.fileno()
        position = os.lseek(descriptor, 0, os.SEEK_CUR)
        try:
            data = os.lseek(descriptor, at, os.SEEK_DATA)
            return min(self._end, max(at, at + (data - at) // BLOCK * BLOCK))
        except OSError:  # from here on there is only a hole
            return self._end
        finally:
            os.lseek(descriptor, position, os.SEEK_SET)  # the position that the buffered file expects

    def _read(self, at: int, size: int) -> bytes:
        if at + size > self._end:
            size = max(0, self._end - at)
        self._file.seek(at)
        return self._file.read(size)

    def _no_header(self, at: int, block: bytes, error: _HeaderError) -> ValueError:
        if at == self._start and block[257:262] != b"ustar":
            return self._no_tar()
        after = f", after {printable(self._last, 200)!r}" if self._last else ""
        return ValueError(
            f"{self._where()}: corrupt tar: at byte {at - self._start:,}{after}, there is no header of a member "
            f"({error}); copy or download it again, or, if what lies there belongs to no tar, cut the file off there"
        )

    def _no_tar(self) -> ValueError:
        name = PurePath(self._inner[-1]) if self._inner else self._path
        kind, remedy = describe_file(self._read(self._start, 4096), name, self._end - self._start)
        return ValueError(f"{self._where()}: no tar file, but {kind}; {remedy}")

    def _where(self) -> str:
        return ": ".join([printable(self._path), *(f"'{printable(name, 200)}'" for name in self._inner)])

    def _corrupt(self, at: int, name: str, what: object) -> ValueError:
        return ValueError(
            f"{self._where()}: corrupt tar: member '{printable(name, 200)}' at byte {at - self._start:,}: {what}; "
            "copy or download it again"
        )


def _check_sum(block: bytes) -> None:
    if len(block) < BLOCK:
        raise _HeaderError(f"the file ends after {len(block)} of its {BLOCK} bytes")
    stored = _number(block[148:156], "checksum")
    unsigned = sum(block) - sum(block[148:156]) + 8 * ord(" ")
    if stored == unsigned:
        return
    # some old programs summed signed bytes
    signed = unsigned - 256 * sum(byte > 127 for byte in block[:148] + block[156:])
    if stored != signed:
        raise _HeaderError("its checksum is wrong")


def _number(field: bytes, what: str) -> int:
    """Return a number of a header: octal digits, or base 256 where the highest bit is set."""
    if field[0] & 0x80:
        if field[0] & 0x40:
            raise _HeaderError(f"its {what} is negative")
        return int.from_bytes(bytes((field[0] & 0x3F,)) + field[1:], "big")
    digits = field.partition(b"\0")[0].strip(b" ")
    if not digits:
        return 0
    if digits.strip(b"01234567"):
        raise _HeaderError(f"its {what} is {printable(ascii(digits))}, no octal number")
    return int(digits, 8)


def _decimal(text: str, what: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise _HeaderError(f"its {what} is '{printable(text, 40)}', no number of bytes")
    return int(text)


def _pax_records(data: bytes) -> dict[str, str]:
    """Return the pax records ("LENGTH KEY=VALUE" and a line feed each) that are needed here.

    An empty value cancels the value of an earlier header.
    """
    records: dict[str, str] = {}
    at = 0
    while at < len(data) and data[at]:  # zeros may follow the records
        space = data.find(b" ", at, at + 20)
        length = data[at : max(at, space)]
        if not length.isdigit():
            raise _HeaderError("a pax record has no length")
        stop = at + int(length)
        if not space < stop - 1 < len(data) or data[stop - 1 : stop] != b"\n":
            raise _HeaderError("a pax record has a wrong length")
        key, equals, value = data[space + 1 : stop - 1].partition(b"=")
        if not equals:
            raise _HeaderError("a pax record has no value")
        if key in (b"path", b"linkpath", b"size") or key.startswith(b"GNU.sparse."):
            records[_decoded(key)] = _decoded(value)
        at = stop
    return records


def _name(block: bytes) -> str:
    name = _text(block[:100])
    if block[345] and block[257:263] == b"ustar\0":  # GNU's own format keeps times there
        return f"{_text(block[345:500])}/{name}"
    return name


def _text(field: bytes) -> str:
    return _decoded(field.partition(b"\0")[0])


def _decoded(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK
