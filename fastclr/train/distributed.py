"""Ranks: one process per device, started by torchrun, or the single process; and what they compute together.

torchrun sets RANK, LOCAL_RANK and WORLD_SIZE in the environment of each process; without them there is one
rank, and nothing here communicates.  torchrun also ends the job: when a process dies, it kills the others,
names the first that failed, and starts all of them again if `--max-restarts` says so.
"""

import gc
import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import reduce
from typing import TypeVar, cast

import torch
import torch.distributed as dist

# its functions take the group of the moment of import as a default and so keep it for ever (seen in torch 2.15);
# DDP imports it, by then with a group: imported here there is none yet, and a group that ends is really gone
import torch.distributed.nn.functional
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fastclr.loss.rows import gather_rows
from fastclr.model.global_bn import convert_batchnorm

Answer = TypeVar("Answer")

TIMEOUT = {"gloo": timedelta(seconds=60), "cpu:gloo,cuda:nccl": timedelta(minutes=10)}
"""How long a rank waits for one that hangs; one that dies is noticed at once.  On GPUs compiling may take longer
on one rank than on another."""
EXIT_DELAY_S = 20.0
"""How long a rank that lost another stays alive, so that torchrun finds the one that died first, and names it.  It
ends the others as soon as it has; on a busy machine a process that failed takes several seconds to be gone."""


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
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"RANK and WORLD_SIZE must both be numbers ({error}); start several ranks with torchrun"
        ) from None
    if not 0 <= rank < world_size:
        raise ValueError(f"RANK is {rank} of WORLD_SIZE {world_size}; it must be 0 to {world_size - 1}")
    return Ranks(rank, world_size, local_rank, local_world_size)


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
            time.sleep(EXIT_DELAY_S)
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
    return dist.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)


def _is_about_another_rank(error: Exception) -> bool:
    # gloo has no exception of its own: what it raises is a RuntimeError that names its source file
    return isinstance(error, (dist.DistError, RankLost)) or (
        type(error) is RuntimeError and "gloo" in str(error)
    )


def data_parallel(
    model: nn.Module,
    ranks: Ranks,
    *,
    compiled: bool = False,
    accumulates: bool = False,
    global_bn: bool = True,
) -> nn.Module:
    """The module to call in training: batch norms over all ranks, weight gradients averaged over them.

    Args:
        model: on its device, with the same weights on every rank; its batch norms are replaced in place, and
            parameters, buffers and their names stay as they are.
        ranks: of the run; with one, the model itself is returned.
        compiled: compile it with `torch.compile`.
        accumulates: gradients of several backward passes are added up under `no_sync`, which DDP can't do with a
            static graph.
        global_bn: False leaves the batch norms to each rank: to measure what their synchronisation costs.
    """
    if ranks.world_size > 1 and global_bn:
        model = convert_batchnorm(model, ranks.group)
    # compiled inside of DDP, not around it: torch.compile can't split a static graph at DDP's buckets
    forward = cast(nn.Module, torch.compile(model)) if compiled else model
    if ranks.world_size == 1:
        return forward
    device = next(model.parameters()).device
    with warnings.catch_warnings():
        # newer versions of torch (2.15) have another name for broadcast_buffers, older ones (2.8) only this
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
        parallel = DistributedDataParallel(
            forward,
            device_ids=[device] if device.type == "cuda" else None,
            broadcast_buffers=False,  # global batch norm makes the same running statistics everywhere
            gradient_as_bucket_view=True,
            static_graph=not accumulates,
        )
    if device.type == "cpu":
        parallel.register_comm_hook(ranks.group, _average_in_order)
    return parallel


def _average_in_order(group: dist.ProcessGroup, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """A bucket of gradients, averaged over the ranks: each rank adds up a share of it, in the order of the ranks.

    gloo's own order depends on where in a bucket a gradient lies, and DDP packs its buckets anew after the first
    step of a process: with three ranks or more a resumed run would differ in the last bits.
    """
    own, world_size = bucket.buffer(), group.size()
    shares = F.pad(own, (0, -len(own) % world_size)).view(world_size, -1)
    share_of_ranks = torch.empty_like(shares)
    dist.all_to_all_single(share_of_ranks, shares, group=group)
    total = gather_rows(reduce(torch.add, share_of_ranks.unbind()), group)
    average: torch.futures.Future[Tensor] = torch.futures.Future()
    average.set_result(total[: len(own)] / world_size)
    return average


def run_on_main_and_broadcast(ranks: Ranks, compute: Callable[[], Answer]) -> Answer:
    """Return on every rank what `compute()` returns on rank 0: only one looks at files that others may be writing.

    Raises:
        ValueError, OSError: on rank 0, what `compute` raised.
        RankLost: in that case on the other ranks, so that only rank 0 tells the reason.
    """
    if ranks.world_size == 1:
        return compute()
    answer: list = [None, None]
    if ranks.is_main:
        try:
            answer[0] = compute()
        except (ValueError, OSError) as error:
            answer[1] = error
    dist.broadcast_object_list(answer, device=torch.device("cpu"))
    if answer[1] is None:
        return answer[0]
    raise answer[1] if ranks.is_main else RankLost("rank 0 failed")


def all_reduce_max(ranks: Ranks, *values: int) -> tuple[int, ...]:
    """Return the largest of each value over all ranks, on every rank; the values are on the CPU.

    A signal reaches the ranks in different steps, and clocks differ: what ends a step must be decided together,
    or one rank waits in an all-reduce that the others don't do.
    """
    if ranks.world_size == 1:
        return values
    largest = torch.tensor([int(value) for value in values])
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return tuple(largest.tolist())


def mean_over_ranks(values: Tensor, ranks: Ranks) -> Tensor:
    """Return the average of `values` over the ranks, in the same shape."""
    if ranks.world_size == 1:
        return values
    total = values.clone()
    dist.all_reduce(total)
    return total / ranks.world_size
