"""Changes to numba and FFCV, for the whole process, that are needed before FFCV runs.

Each names its symptom, its condition and when it can be removed.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numba
import numpy as np
import torch


def choose_threading_layer() -> None:
    """Let numba use OpenMP if there is one processor.

    Symptom: the process hangs at exit.  Condition: numba's first choice, TBB, on one processor, after the process has
    forked (numba #10556).  Remove it when numba ends TBB's threads in that case.
    """
    if numba.config.NUMBA_NUM_THREADS == 1 and numba.config.THREADING_LAYER == "default":
        numba.config.THREADING_LAYER = "omp"


@contextmanager
def thread_counts_kept() -> Iterator[None]:
    """Restore the thread counts of torch and numba, which FFCV changes at its import and when a loader is made."""
    counts = torch.get_num_threads(), numba.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(counts[0])
        numba.set_num_threads(counts[1])


def patch_reader() -> None:
    """Let `OSCacheManager.compile_reader` compile its reader without changing a numba type that others use.

    Symptom: functions compiled earlier for arrays `numba.uint8[::1]`, ours included, raise KeyError when another
    function calls them.  Condition: ffcv 1.0.2 sets `mutable` on that type, an object shared by the whole process.
    Remove it when ffcv's `state_type` makes its types with `readonly=True`.
    """
    from ffcv.memory_managers import OSCacheManager

    OSCacheManager.compile_reader = _compile_reader


def _compile_reader(manager: Any) -> Callable:
    from ffcv.pipeline.compiler import Compiler

    types = numba.types
    data, table = types.Array(types.uint8, 1, "C", readonly=True), types.uint64[::1]

    def read(address, state):
        file, addresses, sizes = state
        return file[address : address + sizes[np.searchsorted(addresses, address)]]

    return Compiler.compile(read, data(types.uint64, types.Tuple([data, table, table])))
