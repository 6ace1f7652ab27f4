"""Memory that this process may use, also in a container or a cluster's job."""

import psutil

from pipelines.system.cgroups import cached_bytes, groups, numbers


def available_memory() -> int:
    """Return the bytes available without swapping: the machine's, capped by what the control groups have left."""
    available = psutil.virtual_memory().available
    for folder in groups("memory"):
        limit = numbers(folder / "memory.max") or numbers(folder / "memory.limit_in_bytes")
        used = numbers(folder / "memory.current") or numbers(folder / "memory.usage_in_bytes")
        if limit and used:
            available = min(available, max(0, limit[0] - used[0] + cached_bytes(folder / "memory.stat")))
    return available
