"""Control groups of Linux: the limits that a container or a cluster's job sets for this process.

A group limits the CPU time and the memory of its processes, which neither the CPU affinity nor the machine's free
memory shows.  The limits of all groups above apply as well.
"""

from collections.abc import Iterator
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")


def groups(controller: str) -> Iterator[Path]:
    """Yield the folders of this process's control groups, of version 1 or 2, each with the groups above it."""
    try:
        lines = OWN_CGROUPS.read_text().splitlines()
    except OSError:  # another system than Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        root = CGROUPS / controller if controllers else CGROUPS
        folder = root / path.lstrip("/")
        yield from (folder, *(above for above in folder.parents if above.is_relative_to(root)))


def numbers(path: Path, count: int = 1) -> tuple[int, ...]:
    """Return the first `count` numbers in a file; () if it is missing, has fewer, or says "max"."""
    try:
        numbers = tuple(map(int, path.read_text().split()))
    except (OSError, ValueError):
        return ()
    return numbers if len(numbers) == count else ()


def cached_bytes(stat: Path) -> int:
    """Return the bytes of the page cache, which count as used but are freed when memory is needed."""
    try:
        rows = dict(line.split() for line in stat.read_text().splitlines())
    except (OSError, ValueError):
        return 0
    return int(rows.get("total_inactive_file", rows.get("inactive_file", 0)))
