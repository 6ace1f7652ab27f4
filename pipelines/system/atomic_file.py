"""Files that appear whole or not at all, also when the writing process is killed.

    path.with_name(".NAME.<8 hex digits>.partial")  ─── written, synced ───▶  os.replace ──▶  path

The writer holds an advisory lock (flock) on the hidden file.  By the lock, the next writer of the same path tells a
file that is being written from one that a killed process left, which it removes.
"""

import contextlib
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # not Unix: files left by killed processes are not removed
    fcntl = None  # type: ignore[assignment]


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[int]:
    """Yield a descriptor of a new hidden file beside `path` that takes its name at the end.

    When the body raises (Ctrl-C included) the hidden file is removed and `path` stays as it was.  Hidden files of
    `path` left by killed processes are removed first.  If the file system has no locks, neither those files nor other
    writers are noticed.

    Raises:
        OSError: the folder of `path` does not exist or is not writable, or another process is writing `path`.
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
            # the lock is held until the rename, so that no other writer takes the file for an abandoned one
            os.replace(partial, path)
        except BaseException:
            descriptor = _close(descriptor)
            partial.unlink(missing_ok=True)
            raise
    finally:
        _close(descriptor)


def write_at(descriptor: int, data: bytes, offset: int, path: Path) -> None:
    """Write all of `data`.  OSError: no space left, or the file is too large; the error names `path`."""
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
    """Create a hidden file and lock it; return its descriptor and its path."""
    while True:
        partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        try:
            descriptor = os.open(partial, flags, 0o666)
        except OSError as error:  # the error must name the file that the user asked for
            raise OSError(error.errno, error.strerror, str(path)) from None
        _try_lock(descriptor)
        # another process may have removed the file as abandoned, between its creation and its lock
        if os.fstat(descriptor).st_nlink or fcntl is None:
            return descriptor, partial
        os.close(descriptor)


def _refuse_other_writers(path: Path, ours: Path) -> None:
    """Remove abandoned hidden files of `path`.  OSError: another process holds one, so it is writing `path`."""
    pattern = re.compile(re.escape(f".{path.name}.") + r"[0-9a-f]{8}\.partial")
    with os.scandir(path.parent) as entries:
        names = [entry.name for entry in entries if entry.name != ours.name and pattern.fullmatch(entry.name)]
    for name in names:
        partial = path.with_name(name)
        try:
            descriptor = os.open(partial, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
        except OSError:  # already removed, or another user's
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
    """Lock a file; return False if another process holds it, None if the file system has no locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
    except OSError:
        return None
