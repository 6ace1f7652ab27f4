"""Standard output whose failure does not end the work: a closed stream, a reader that has gone, a full disk.

Example: with `fastclr train … | tee log`, Ctrl-C ends `tee` as well, and everything printed afterwards fails.
"""

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO


class LenientOutput(io.TextIOBase):
    """A text stream that forwards to another one until that fails, and drops all further text.

    After the first failure the file descriptor of the other stream points to the null device, so that flushing its
    buffer can't fail later, when Python exits.

    >>> stream = io.StringIO()
    >>> LenientOutput(stream).write("step 1")
    6
    >>> stream.close()
    >>> LenientOutput(stream).write("step 2")
    6
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.failed = False
        """Whether something was dropped."""

    def write(self, text: str) -> int:
        """Write the text, or drop it; return its length."""
        if not self.failed:
            try:
                return self._stream.write(text)
            except UnicodeError:
                raise
            except (OSError, ValueError):  # a closed stream is a ValueError
                self._give_up()
        return len(text)

    def flush(self) -> None:
        """Flush the other stream, unless it has failed."""
        if not self.failed:
            try:
                self._stream.flush()
            except (OSError, ValueError):
                self._give_up()

    def _give_up(self) -> None:
        self.failed = True
        with contextlib.suppress(OSError, ValueError, AttributeError):
            descriptor, null = self._stream.fileno(), os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, descriptor)
            os.close(null)

    def isatty(self) -> bool:
        """Whether the other stream is a terminal that has not failed."""
        return not self.failed and not self._stream.closed and self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()

    def writable(self) -> bool:
        return True

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._stream.encoding

    @property
    def errors(self) -> str | None:  # type: ignore[override]
        return self._stream.errors

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def lenient_output() -> Iterator[None]:
    """Let printing to stdout and stderr never fail for the duration of a `with` block.

    Descriptors that the process was started without are opened on the null device, and stay open: otherwise the next
    file that is opened would get their number and receive what C libraries print.
    """
    null = os.open(os.devnull, os.O_RDWR)
    while null <= 2:
        null = os.dup(null)
    os.close(null)
    before = sys.stdout, sys.stderr
    streams = [LenientOutput(stream or open(os.devnull, "w")) for stream in before]  # noqa: SIM115 lasts
    sys.stdout, sys.stderr = streams
    try:
        yield
    finally:
        for stream in streams:
            stream.flush()
        sys.stdout, sys.stderr = before


def say(text: str) -> None:
    """Print a line to stdout; do nothing if there is no stdout."""
    if sys.stdout is not None:
        stream = LenientOutput(sys.stdout)
        stream.write(text + "\n")
        stream.flush()
