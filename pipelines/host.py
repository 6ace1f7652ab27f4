"""What this process may use of its machine: processors and memory, also in a container or a cluster's job.

Containers and jobs are control groups: a share of the processors' time, and a limit on memory, which neither
the list of processors nor the machine's free memory shows.  A limit of any group above counts too.
"""

import math
import os
from collections.abc import Iterator
from pathlib import Path

import psutil

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")


def cores() -> int:
    """Processors: those that it may run on (`taskset`), but no more than the quota of its control group."""
    usable = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    for folder in _groups("cpu"):
        quota = _numbers(folder / "cpu.max", 2)  # microseconds of every so many
        if not quota:
            quota = _numbers(folder / "cpu.cfs_quota_us") + _numbers(folder / "cpu.cfs_period_us")
        if len(quota) == 2 and quota[0] > 0:  # −1: none
            usable = min(usable, quota[0] / quota[1])
    return max(1, math.ceil(usable))


def available_memory() -> int:
    """Bytes that can be had without swapping: the machine's, but no more than its control group has left."""
    available = psutil.virtual_memory().available
    for folder in _groups("memory"):
        limit = _numbers(folder / "memory.max") or _numbers(folder / "memory.limit_in_bytes")
        used = _numbers(folder / "memory.current") or _numbers(folder / "memory.usage_in_bytes")
        if limit and used:
            available = min(available, max(0, limit[0] - used[0] + _cached(folder / "memory.stat")))
    return available


def _groups(controller: str) -> Iterator[Path]:
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


def _numbers(path: Path, count: int = 1) -> tuple[int, ...]:
    """The numbers in a file, or nothing where there is none, or not so many, or a limit is "max"."""
    try:
        numbers = tuple(map(int, path.read_text().split()))
    except (OSError, ValueError):
        return ()
    return numbers if len(numbers) == count else ()


def _cached(stat: Path) -> int:
    """Bytes of files that count as used, and are given back when somebody needs the memory."""
    try:
        rows = dict(line.split() for line in stat.read_text().splitlines())
    except (OSError, ValueError):
        return 0
    return int(rows.get("total_inactive_file", rows.get("inactive_file", 0)))
