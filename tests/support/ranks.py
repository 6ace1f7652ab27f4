"""Real ranks for tests: processes that talk over gloo.

from support.ranks import run_ranks

def worker(rank: int, world_size: int) -> torch.Tensor: ...      # at the top of a test file

per_rank = run_ranks(worker, world_size=2)
"""

import importlib.util
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

# while there is no group yet, or its functions keep it and its threads for ever: see fastclr/train/distributed.py
import torch.distributed.nn.functional
import torch.multiprocessing as mp

TIMEOUT_S = 120


def run_ranks(worker: Callable[..., Any], world_size: int, *args: Any) -> list[Any]:
    """What `worker(rank, world_size, *args)` returned in each of `world_size` new processes.

    The worker is a function at the top of its file; it runs inside a default process group of gloo.  Its
    exception is raised here; a rank that hangs is killed, and a TimeoutError is raised.  A single rank runs in
    this process.
    """
    with tempfile.TemporaryDirectory() as folder:
        if world_size == 1:
            with _process_group(0, 1, folder):
                return [worker(0, 1, *args)]
        context = mp.start_processes(
            _run_rank,
            (world_size, worker.__code__.co_filename, worker.__name__, args, folder),
            nprocs=world_size,
            join=False,
            start_method="spawn",
        )
        deadline = time.monotonic() + TIMEOUT_S
        try:
            while not context.join(max(0.0, deadline - time.monotonic())):  # returns when some have ended
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{worker.__name__}: a rank of {world_size} hangs")
        finally:
            for process in context.processes:
                process.kill()
        return [torch.load(_result(folder, rank), weights_only=False) for rank in range(world_size)]


def _run_rank(rank: int, world_size: int, file: str, name: str, args: tuple, folder: str) -> None:
    torch.set_num_threads(1)
    # by path: pytest's import mode gives test files no name that another process could import
    spec = importlib.util.spec_from_file_location("worker_file", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["worker_file"] = module
    spec.loader.exec_module(module)
    with _process_group(rank, world_size, folder):
        torch.save(getattr(module, name)(rank, world_size, *args), _result(folder, rank))


@contextmanager
def _process_group(rank: int, world_size: int, folder: str) -> Iterator[None]:
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=TIMEOUT_S / 2),
    )
    try:
        yield
    finally:
        dist.destroy_process_group()


def _result(folder: str, rank: int) -> Path:
    return Path(folder) / f"rank{rank}.pt"
