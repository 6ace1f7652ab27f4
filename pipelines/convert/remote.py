"""Shards on other machines, read through local temporary files: s3://…, gs://…, https://… and what else fsspec knows.

    https://…/train-{000..146}.tar ─download, two ahead─▶ temporary file ─▶ what reads local tars and Parquet files

The shards are read twice: once for the table of what is in them, once for the images.  As many as the disk has room
for are kept in between; of the others, a few at a time lie on the disk, and they are downloaded again.
"""

import shutil
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from pipelines.convert.optional import import_optional
from pipelines.convert.patterns import expand_pattern
from pipelines.system.terminal import printable

DISK_SHARE = 0.5
"""Share of the free space of the folder for temporary files that shards may take for long."""
AHEAD = 2
"""Shards that are downloaded before they are needed."""
TRIES = 3
"""Times that a download is started."""
PAUSE_S = 1.0
"""Seconds before the second try; each further one waits twice as long."""
_BLOCK = 1 << 22


class RemoteFiles:
    """Files behind URLs; each has a local path, at which it lies while it is held.

    Args:
        urls: the files.
        keep_bytes: bytes of the files that stay once they are downloaded; None: half of the free disk space.
        progress: called with the number of files that have been downloaded once, and of all.

    Raises:
        ValueError: fsspec, or its package for this kind of URL, is missing, or the kind is unknown.
    """

    def __init__(
        self,
        urls: list[str],
        keep_bytes: int | None = None,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        self._urls, self._progress = urls, progress
        self._folder = tempfile.TemporaryDirectory(prefix="fastclr-")
        root = Path(self._folder.name)
        self.paths = [root / str(k) / _file_name(url) for k, url in enumerate(urls)]
        """Where each file lies while it is held."""
        self._number = {path: k for k, path in enumerate(self.paths)}
        self._systems = [file_system(url) for url in urls]
        self._keep_bytes = (
            int(DISK_SHARE * shutil.disk_usage(root).free) if keep_bytes is None else keep_bytes
        )
        self._changed = threading.Condition()
        self._here: OrderedDict[int, int] = OrderedDict()  # number → users, the least recently used first
        self._kept: set[int] = set()
        self._kept_bytes = 0
        self._underway: set[int] = set()
        self._seen: set[int] = set()

    @property
    def are_all_kept(self) -> bool:
        """Whether every file stays here, so that images can be read in any order."""
        return len(self._kept) == len(self.paths)

    @contextmanager
    def held(self, path: Path) -> Iterator[None]:
        """Have a file at its path while the block runs; it is downloaded if it is not there.

        Raises:
            OSError: it cannot be downloaded; the error names the URL.
            ValueError: the block raised it; the URL stands in it for the path.
        """
        number = self._number[path]
        self._acquire(number)
        try:
            for next_one in range(number + 1, min(number + 1 + AHEAD, len(self.paths))):
                self._read_ahead(next_one)
            yield
        except ValueError as error:
            raise ValueError(str(error).replace(str(path), printable(self._urls[number]))) from error
        finally:
            with self._changed:
                self._here[number] -= 1
                self._evict()
                self._changed.notify_all()

    def _acquire(self, number: int) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: number not in self._underway)
                if number in self._here:
                    self._here[number] += 1
                    self._here.move_to_end(number)
                    return
                self._underway.add(number)
            self._download(number)

    def _read_ahead(self, number: int) -> None:
        """Start to download a file that nobody waits for yet."""
        with self._changed:
            if number in self._here or number in self._underway or len(self._underway) >= AHEAD:
                return
            self._underway.add(number)

        def run() -> None:
            with suppress(OSError, ValueError):  # who needs the file tries again, and says what is wrong
                self._download(number)

        threading.Thread(target=run, name=f"download-{number}", daemon=True).start()

    def _download(self, number: int) -> None:
        """Download a file that is marked as underway."""
        path = self.paths[number]
        try:
            size = _fetch(self._systems[number], self._urls[number], path)
            with self._changed:
                self._here[number] = 0
                if self._kept_bytes + size <= self._keep_bytes:
                    self._kept.add(number)
                    self._kept_bytes += size
                self._seen.add(number)
                self._evict(spare=number)
        finally:
            with self._changed:
                self._underway.discard(number)
                self._changed.notify_all()
        self._progress(len(self._seen), len(self.paths))

    def _evict(self, spare: int = -1) -> None:
        """Delete the files that were not used for longest, but for a few; those that are held, or kept, stay."""
        passing = [k for k in self._here if k not in self._kept]
        for number in passing[: max(0, len(passing) - AHEAD - 2)]:
            if not self._here[number] and number != spare:
                del self._here[number]
                self.paths[number].unlink(missing_ok=True)


def expand_urls(source: str) -> list[str]:
    """Return the URLs that a URL means, which may have braces, and `*`, `?` or `[…]` where files can be listed.

    Raises:
        OSError: no file has a name of this pattern, or the files cannot be listed.
        ValueError: fsspec, or its package for this kind of URL, is missing, or the kind is unknown.
    """
    urls: list[str] = []
    for url in expand_pattern(source, with_glob=False):
        is_web = url.startswith(("http://", "https://"))
        # in a web address, ? stands before a query
        if not any(letter in url for letter in ("*[" if is_web else "*?[")):
            urls.append(url)
            continue
        system, path = file_system(url)
        with _explained(url):
            found = sorted(system.glob(path))
        if not found:
            raise FileNotFoundError(f"{printable(url)}: no file has a name of this pattern")
        urls += [system.unstrip_protocol(each) for each in found]
    return urls


def file_system(url: str) -> tuple[Any, str]:
    """Return fsspec's file system for a URL, and the path in it.

    Raises:
        ValueError: fsspec, or its package for this kind of URL, is missing, or the kind is unknown.
    """
    core = import_optional("fsspec.core", "remote", f"the source {printable(url, 100)}")
    try:
        return core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        reason = printable(" ".join(str(error).split()), 200)
        raise ValueError(
            f"{printable(url)}: {reason}; s3://, gs:// and https:// come with pip install 'fastclr[remote]'"
        ) from error


def _file_name(url: str) -> str:
    return PurePosixPath(urlsplit(url).path).name or "shard"


def suffix_of_url(url: str) -> str:
    """Return the lower-case suffix of what a URL names, without its query."""
    return PurePosixPath(urlsplit(url).path).suffix.lower()


def _fetch(system: tuple[Any, str], url: str, path: Path) -> int:
    """Download a file whole; returns its bytes."""
    path.parent.mkdir(exist_ok=True)
    pause = PAUSE_S
    for attempt in range(TRIES):
        try:
            with _explained(url):
                return _fetch_once(system, url, path)
        except FileNotFoundError:
            raise
        except OSError:
            path.unlink(missing_ok=True)
            if attempt == TRIES - 1:
                raise
            time.sleep(pause)
            pause *= 2
    raise AssertionError("unreachable")


def _fetch_once(system: tuple[Any, str], url: str, path: Path) -> int:
    files, name = system
    size = files.info(name).get("size")
    partial = path.with_name(f"{path.name}.partial")
    with (
        files.open(name, "rb", block_size=_BLOCK, cache_type="readahead") as remote,
        open(partial, "wb") as local,
    ):
        shutil.copyfileobj(remote, local, _BLOCK)
        found = local.tell()
    if size is not None and found != size:
        partial.unlink()
        raise OSError(f"{printable(url)}: {found:,} of {size:,} bytes came")
    partial.replace(path)
    return found


@contextmanager
def _explained(url: str) -> Iterator[None]:
    """Turn what a file system raises into an OSError that names the URL."""
    try:
        yield
    except FileNotFoundError as error:
        # a web server that cannot be reached looks like a missing file, but for the cause
        cause = error.__cause__
        if cause is None or getattr(cause, "status", None) in (404, 410):
            raise FileNotFoundError(f"{printable(url)}: no such file") from None
        reason = printable(f"{type(cause).__name__}: {' '.join(str(cause).split())}", 200)
        raise OSError(f"{printable(url)}: cannot be read ({reason})") from cause
    # each package has errors of its own: those of aiohttp and botocore are no OSErrors
    except Exception as error:
        if isinstance(error, OSError) and printable(url) in str(error):
            raise
        reason = printable(f"{type(error).__name__}: {' '.join(str(error).split())}", 200)
        raise OSError(f"{printable(url)}: cannot be read ({reason})") from error
