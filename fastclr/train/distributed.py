"""Ranks: one process per device, started by torchrun, or the single process that is the trivial case.

torchrun sets RANK, LOCAL_RANK and WORLD_SIZE in the environment of each process; without them there is one
rank, and nothing here talks to anybody.  torchrun also ends the job: when a process dies, it kills the others,
names the first that failed, and starts all of them again if `--max-restarts` says so.
"""

import gc
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import psutil
import torch
import torch.distributed as dist

# its functions take the group of the moment of import as a default and so keep it for ever (seen in torch 2.15);
# DDP imports it, by then with a group: imported here there is none yet, and a group that ends is really gone
import torch.distributed.nn.functional

TIMEOUT = {"gloo": timedelta(seconds=60), "cpu:gloo,cuda:nccl": timedelta(minutes=10)}
"""How long a rank waits for one that hangs; one that dies is noticed at once.  On GPUs compiling may take longer
on one rank than on another."""
PATIENCE_S = 5.0
"""How long a rank that lost another stays alive, so that torchrun finds the one that died first, and names it."""


class RankLost(ConnectionError):
    """Another rank died, failed or hangs."""


@dataclass(frozen=True)
class Ranks:
    """Who this process is among the processes of the run."""

    rank: int = 0
    """Number of this process, 0 ≤ rank < world_size."""
    world_size: int = 1
    """Processes of the run, over all nodes."""
    local_rank: int = 0
    """Number of this process on its node; the device it owns."""
    local_world_size: int = 1
    """Processes of the run on this node; they share its cores."""
    launched: float = 0.0
    """When torchrun began on this node, seconds since the epoch."""
    restarts: int = 0
    """How often torchrun has started the processes of this node again."""

    @property
    def group(self) -> dist.ProcessGroup | None:
        """The ranks that share a batch, as losses take them; None for a single process."""
        return dist.group.WORLD if self.world_size > 1 else None

    @property
    def is_main(self) -> bool:
        """Whether this process writes the run folder and speaks to the user."""
        return self.rank == 0


def ranks_from_env() -> Ranks:
    """The ranks that torchrun's environment describes, or the single process.

    Raises:
        ValueError: the environment holds a part of torchrun's variables, or numbers that don't fit.
    """
    if "RANK" not in os.environ and "WORLD_SIZE" not in os.environ:
        return Ranks()
    try:
        rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        local_rank = int(os.environ.get("LOCAL_RANK", rank))
        local_world_size = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"RANK and WORLD_SIZE must both be numbers ({error}); start several ranks with torchrun"
        ) from None
    if not 0 <= rank < world_size:
        raise ValueError(f"RANK is {rank} of WORLD_SIZE {world_size}; it must be 0 to {world_size - 1}")
    return Ranks(rank, world_size, local_rank, local_world_size, _launched(), restarts)


def _launched() -> float:
    """When torchrun began: the nearest process above this one that was not itself started by it."""
    outside = (above for above in psutil.Process().parents() if not _is_of_the_job(above))
    return next((process.create_time() for process in outside), 0.0)


def _is_of_the_job(process: psutil.Process) -> bool:
    """Whether torchrun started it: a script between torchrun and us."""
    try:
        return "TORCHELASTIC_RUN_ID" in process.environ()
    except psutil.AccessDenied:  # somebody else's
        return False


def pick_device(name: str, ranks: Ranks, option: str = "--train.device") -> torch.device:
    """The device of this rank.

    Args:
        name: "cpu", "cuda", "cuda:N", or "auto" for a GPU where there is one.
        ranks: of the run.
        option: what the user calls the setting, for messages.

    Raises:
        ValueError: a GPU that this machine does not have; one GPU for several ranks.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ValueError(f"{option} is {name!r}; it must be auto, cpu, cuda or cuda:N")
    if device.type == "cpu":
        return device
    if not torch.cuda.is_available():
        raise ValueError(f"{option} is {name!r}, but torch sees no GPU here; use {option} cpu")
    if device.index is not None and ranks.local_world_size > 1:
        raise ValueError(
            f"{option} is {name!r}, one GPU, and torchrun started {ranks.local_world_size} ranks here; "
            f"use {option} cuda: each takes its own"
        )
    index = ranks.local_rank if device.index is None else device.index
    if index >= torch.cuda.device_count():
        raise ValueError(f"there is no GPU {index}: torch sees {torch.cuda.device_count()} of them here")
    return torch.device("cuda", index)


@contextmanager
def process_group(ranks: Ranks, device: torch.device) -> Iterator[None]:
    """Join the ranks for the duration of a `with` block: NCCL between GPUs, gloo between CPUs.

    What is raised inside gets the rank's name.  A rank that finds another one gone waits a little, so that
    torchrun sees who died first, and raises too: nobody waits for ever.

    Raises:
        RankLost: another rank died, or was not heard of for as long as `TIMEOUT`.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if ranks.world_size == 1:
        yield
        return
    # with GPUs, too, a few numbers are agreed on between CPUs: those do not wait for the device
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    timeout = TIMEOUT[backend]
    name = f"rank {ranks.rank} of {ranks.world_size}"
    try:
        store = _store_of_this_attempt(ranks, timeout)
        dist.init_process_group(
            backend, store=store, rank=ranks.rank, world_size=ranks.world_size, timeout=timeout
        )
        yield
    except Exception as error:
        # the group is left to the end of the process: to take it down, NCCL would wait for the others
        if _is_about_another_rank(error):
            time.sleep(PATIENCE_S)
            raise RankLost(
                f"{name} lost another rank, which died or hangs; torchrun names the first that failed"
            ) from error
        if isinstance(error, OSError):
            reason = ": ".join(str(part) for part in (error.strerror or error, error.filename) if part)
            raise OSError(f"{name}: {reason}") from error
        if isinstance(error, ValueError):
            raise ValueError(f"{name}: {error}") from error
        error.add_note(f"raised by {name}")
        raise
    # gloo's threads end with the last reference to the group, and DDP has one, in a cycle; a thread that is still
    # about when Python ends may abort the process (SIGABRT, "terminate called without an active exception")
    gc.collect()
    dist.destroy_process_group()


def _store_of_this_attempt(ranks: Ranks, timeout: timedelta) -> dist.Store:
    """Where the ranks find each other.

    torchrun keeps its store when it restarts the processes (seen in torch 2.15), so a rank that is early would find
    the address of one that is dead, and fail with "Connection refused": each attempt gets keys of its own.  The
    nodes don't count restarts alike, so this is for one node; for several, torchrun makes a new store each time
    if TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 is set, as in deploy/.
    """
    store, _, _ = next(dist.rendezvous("env://", ranks.rank, ranks.world_size, timeout=timeout))
    if ranks.local_world_size < ranks.world_size:
        return store
    return dist.PrefixStore(f"attempt {ranks.restarts}", store)


def _is_about_another_rank(error: Exception) -> bool:
    # gloo has no exception of its own: what it raises is a RuntimeError that names its source file
    return isinstance(error, (dist.DistError, RankLost)) or (
        type(error) is RuntimeError and "gloo" in str(error)
    )
