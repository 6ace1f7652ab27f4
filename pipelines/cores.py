"""How many processors this process may use."""

import os


def cores() -> int:
    """Those that it may run on, which a container or `taskset` may have cut down; on systems that can't say, all."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
