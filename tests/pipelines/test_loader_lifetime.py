"""TwoViewLoader: threads, processes and memory, whenever and however an iteration ends."""

import gc
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import psutil
import pytest
from support.loader_support import HOST_ENGINES, loader

from pipelines import ViewSpec
from pipelines.engines import ENGINES

OPTIONAL = {"ffcv": "ffcv", "dali": "nvidia.dali"}

LEFT_ALIVE = """
import sys
from pipelines import TwoViewLoader
loader = TwoViewLoader(sys.argv[1], 4, size=96, engine=sys.argv[2], num_threads=4)
batches = iter(loader)
next(batches)
"""


@pytest.mark.parametrize("engine", HOST_ENGINES)
def test_a_program_may_end_in_mid_epoch(tiny_beton, engine):
    """Its threads are then at work, in memory that Python is about to take down."""
    for _ in range(3):
        command = [sys.executable, "-c", LEFT_ALIVE, str(tiny_beton), engine]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stderr) == (0, "")


def alive(engine: str) -> int:
    """Threads and child processes."""
    time.sleep(0.3)  # some are there for a moment after their end
    process = psutil.Process()
    if engine == "dali":  # whose threads are not Python's
        return process.num_threads()
    return threading.active_count() + len(process.children())


@pytest.mark.parametrize("engine", ENGINES)
def test_a_closed_loader_has_no_threads(tiny_beton, engine, require_package):
    if engine in OPTIONAL:
        require_package(OPTIONAL[engine])
    if engine == "dali":
        with loader(tiny_beton, engine=engine) as ours:
            list(ours)  # some threads are the whole process's, and stay
    before = alive(engine)
    ours = loader(tiny_beton, engine=engine)
    started, waiting = iter(ours), iter(ours)
    next(started)
    assert alive(engine) > before
    ours.close()
    assert alive(engine) == before
    for batches in (started, waiting):
        with pytest.raises(RuntimeError, match="the loader was closed"):
            next(batches)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_child_does_not_wait_for_its_parents_threads(cifar_beton_small, only_simplejpeg):
    """Small images without libturbojpeg: threads take turns, and a fork may copy a turn that never ends."""
    with loader(cifar_beton_small, batch_size=8, num_threads=4) as ours:
        batches = iter(ours)
        next(batches)
        for _ in range(5):
            pid = os.fork()
            if pid == 0:
                next(iter(ours))
                os._exit(7)
            deadline, ended, status = time.monotonic() + 30, 0, 0
            while not ended and time.monotonic() < deadline:
                time.sleep(0.01)
                ended, status = os.waitpid(pid, os.WNOHANG)
            if not ended:
                os.kill(pid, signal.SIGKILL)
            assert ended == pid, "the child hangs"
            assert os.waitstatus_to_exitcode(status) == 7, "it has its batch"


@pytest.mark.parametrize("engine", HOST_ENGINES)
def test_dropped_iterators_leave_nothing_behind(tiny_beton, engine):
    ours = loader(tiny_beton, size=None, spec=ViewSpec.simclr(96), engine=engine)
    list(ours)
    threads = threading.active_count()
    gc.collect()
    memory = psutil.Process().memory_info().rss
    for _ in range(20):
        next(iter(ours))
    gc.collect()
    assert threading.active_count() == threads
    # 20 leaked batches with their prefetch would be 4 x 20 x 1.3 MB
    assert psutil.Process().memory_info().rss - memory < 20e6


def test_memory_is_bounded(tiny_beton):
    """At most prefetch + 2 batches beside the receiver's own, however slow the receiver is."""
    spec = ViewSpec.simclr(224, num_views=2)
    ours = loader(tiny_beton, size=None, spec=spec, batch_size=8)
    batch_bytes = np.prod((2, 8, 3, 224, 224)) * 4
    list(ours)
    gc.collect()
    before = psutil.Process().memory_info().rss
    batches = iter(ours)
    next(batches)
    time.sleep(0.5)
    assert psutil.Process().memory_info().rss - before < 4.5 * batch_bytes
