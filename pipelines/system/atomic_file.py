"""Files that appear whole or not at all, also when the writing process is killed.

    path.with_name(".NAME.<8 hex digits>.partial")  ─── written, synced ───▶  os.replace ──▶  path

The writer holds an advisory lock (flock) on the hidden file.  So the next writer of the same path can tell a file
that a killed process left, which it removes, from one that is being written.
"""

import contextlib
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # no Unix: files that killed processes left stay there
    fcntl = None  # type: ignore[assignment]


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[int]:
    """Yield a descriptor of a new hidden file beside `path` that takes its name at the end.

    When the body raises (Ctrl-C included) the hidden file is removed and `path` is what it was.  Hidden files of
    `path` that processes left when they were killed are removed first.  Where the file system has no locks,
    neither these nor other writers are noticed.

    Raises:
        OSError: the folder of `path` does not exist or is not writable, or another process writes `path` now.
    """
    descriptor, partial = _create_partial(path)
    try:
        try:
            _refuse_other_writers(path, partial)
            yield descriptor
            try:
                os.fsync(descriptor)
            except OSError as error:
                raise OSError(error.errno, error.strerror, str(path)) from None
            if fcntl is None:  # an open file cannot be renamed there
                descriptor = _close(descriptor)
            # the lock is held until the file has its name: nobody may take it for an abandoned one
            os.replace(partial, path)
        except BaseException:
            descriptor = _close(descriptor)
            partial.unlink(missing_ok=True)
            raise
    finally:
        _close(descriptor)


def write_at(descriptor: int, data: bytes, offset: int, path: Path) -> None:
    """Write all of `data`.  OSError (no space left, file too large): it names `path`."""
    try:
        rest = memoryview(data)
        while rest:
            written = os.pwrite(descriptor, rest, offset)
            rest, offset = rest[written:], offset + written
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


def _close(descriptor: int) -> int:
    if descriptor >= 0:
        os.close(descriptor)
    return -1


def _create_partial(path: Path) -> tuple[int, Path]:
    """Create a hidden file and lock it; returns its descriptor and its path."""
    while True:
        partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        try:
            descriptor = os.open(partial, flags, 0o666)
        except OSError as error:  # name the file that the user asked for
            raise OSError(error.errno, error.strerror, str(path)) from None
        _try_lock(descriptor)
        # between its creation and its lock, another process may have removed it as an abandoned one
        if os.fstat(descriptor).st_nlink or fcntl is None:
            return descriptor, partial
        os.close(descriptor)


def _refuse_other_writers(path: Path, ours: Path) -> None:
    """Remove hidden files of `path` that nobody holds.  OSError: one is held by a process that writes `path`."""
    pattern = re.compile(re.escape(f".{path.name}.") + r"[0-9a-f]{8}\.partial")
    with os.scandir(path.parent) as entries:
        names = [entry.name for entry in entries if entry.name != ours.name and pattern.fullmatch(entry.name)]
    for name in names:
        partial = path.with_name(name)
        try:
            descriptor = os.open(partial, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
        except OSError:  # gone meanwhile, or another user's
            continue
        try:
            locked = _try_lock(descriptor)
            if locked is False:
                raise BlockingIOError(
                    f"{path}: another process is writing it ({partial.name}); "
                    "wait for its end, or choose another name"
                )
            if locked:
                partial.unlink(missing_ok=True)
        finally:
            os.close(descriptor)


def _try_lock(descriptor: int) -> bool | None:
    """Lock a file; False where another process holds it, None where the file system has no locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
    except OSError:
        return None
