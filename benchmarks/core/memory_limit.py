"""A control group of Linux that limits the memory of a process, its share of the page cache included."""

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipelines.system.cgroups import groups

LIMITS = ("memory.max", "memory.limit_in_bytes")
"""Where a group's limit is written: version 2, version 1."""
REMOVAL_S = 5.0
"""How long the kernel may take to notice that a group's last process has ended, in seconds."""


@contextmanager
def limited_group(max_bytes: int) -> Iterator[Path]:
    """Make a group below this process's own, or below one above it; remove it when the block ends.

    Raises:
        OSError: none can be made; the message says why.
    """
    group = _make(max_bytes)
    try:
        yield group
    finally:
        deadline = time.monotonic() + REMOVAL_S
        while group.exists():
            try:
                group.rmdir()
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)


def join(group: Path) -> None:
    """Move this process into a group: what it allocates and reads from now on counts there."""
    (group / "cgroup.procs").write_text(f"{os.getpid()}\n")


def _make(max_bytes: int) -> Path:
    reasons = []
    for parent in groups("memory"):
        try:
            group = Path(tempfile.mkdtemp(prefix="fastclr-", dir=parent))
        except OSError as error:
            reasons.append(f"{parent}: {error.strerror}")
            continue
        try:
            # a folder of version 2 has the file only where the parent hands the controller on
            limit = next((group / name for name in LIMITS if (group / name).exists()), None)
            if limit is None:
                raise OSError(0, "its memory controller is not handed on (cgroup.subtree_control)")
            limit.write_text(f"{max_bytes}\n")
            return group
        except OSError as error:
            reasons.append(f"{parent}: {error.strerror}")
            group.rmdir()
    raise OSError(f"no control group can be made ({'; '.join(reasons) or 'none on this system'})")
