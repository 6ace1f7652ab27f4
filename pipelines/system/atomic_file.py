"""Files that appear whole or not at all."""

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[int]:
    """A file descriptor to write `path` anew: a hidden file beside it, renamed at the end.

    When the body raises (Ctrl-C included) the hidden file is removed and `path` is what it was.

    Raises:
        OSError: the folder of `path` does not exist or is not writable.
    """
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    except OSError as error:  # name the file that the user asked for
        raise OSError(error.errno, error.strerror, str(path)) from None
    try:
        try:
            yield descriptor
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_at(descriptor: int, data: bytes, offset: int, path: Path) -> None:
    """Write all of `data`.  OSError (no space left, file too large): it names `path`."""
    try:
        rest = memoryview(data)
        while rest:
            written = os.pwrite(descriptor, rest, offset)
            rest, offset = rest[written:], offset + written
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
