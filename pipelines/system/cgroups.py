"""Control groups of Linux: the limits that a container or a cluster's job puts on this process.

A group limits the CPU time and the memory of its processes; neither the CPU affinity nor the machine's free memory
shows it.  A limit of any group above counts too.
"""

from collections.abc import Iterator
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")


def groups(controller: str) -> Iterator[Path]:
    """Folders of the control groups that this process is in, of either version, each with those above it."""
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
    """The numbers in a file, or nothing where there is none, or not so many, or a limit is "max"."""
    try:
        numbers = tuple(map(int, path.read_text().split()))
    except (OSError, ValueError):
        return ()
    return numbers if len(numbers) == count else ()


def cached_bytes(stat: Path) -> int:
    """Bytes of files that count as used, and are given back when somebody needs the memory."""
    try:
        rows = dict(line.split() for line in stat.read_text().splitlines())
    except (OSError, ValueError):
        return 0
    return int(rows.get("total_inactive_file", rows.get("inactive_file", 0)))
