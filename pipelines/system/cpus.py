"""Number of CPUs that this process may use, also in a container or a cluster's job."""

import math
import os

from pipelines.system.cgroups import groups, numbers


def cores() -> int:
    """Return the number of CPUs of this process: its affinity mask, capped by the quotas of its control groups."""
    usable = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    for folder in groups("cpu"):
        quota = numbers(folder / "cpu.max", 2)  # "<quota> <period>" in microseconds, or "max"
        if not quota:
            quota = numbers(folder / "cpu.cfs_quota_us") + numbers(folder / "cpu.cfs_period_us")
        if len(quota) == 2 and quota[0] > 0:  # −1: none
            usable = min(usable, quota[0] / quota[1])
    return max(1, math.ceil(usable))
