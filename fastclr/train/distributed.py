"""Ranks (one process per device, started by torchrun, or a single process) and their collective operations.

torchrun sets RANK, LOCAL_RANK and WORLD_SIZE in the environment of each process; without them there is one rank, and
nothing here communicates.  torchrun also ends the job: when a process dies, it kills the others, names the first that
failed, and restarts all of them if `--max-restarts` allows it.
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

# Import now, before a group exists: this module binds the default group as an argument default, and would keep it and
# its threads alive (seen in torch 2.15).  DDP would import it later, with a group.  Remove when torch binds it late.
import torch.distributed.nn.functional
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fastclr.loss.rows import gather_rows
from fastclr.model.global_bn import convert_batchnorm

Answer = TypeVar("Answer")

TIMEOUT = {"gloo": timedelta(seconds=60), "cpu:gloo,cuda:nccl": timedelta(minutes=10)}
"""How long a rank waits for one that hangs; a rank that dies is noticed at once.  On GPUs one rank may compile longer
than another."""
EXIT_DELAY_S = 20.0
"""How long a rank that lost another one stays alive, so that torchrun finds and names the one that died first.  On a
busy machine a failed process takes several seconds to exit; then torchrun ends the others."""


class RankLost(ConnectionError):
    """Another rank died, failed or hangs."""


@dataclass(frozen=True)
class Ranks:
    """This process's place among the processes of the run."""

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
        """Whether this process writes the run folder and prints."""
        return self.rank == 0


def ranks_from_env() -> Ranks:
    """Return the ranks that torchrun's environment describes, or a single process.

    Raises:
        ValueError: the environment has only some of torchrun's variables, or numbers that don't fit.
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

    Errors raised inside get the rank's name.  A rank that loses another one waits a little, so that torchrun sees which
    rank died first, and then raises, too: no rank waits for ever.

    Raises:
        RankLost: another rank died, or did not answer for as long as `TIMEOUT`.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if ranks.world_size == 1:
        yield
        return
    # also with GPUs a few numbers are exchanged between the CPUs, which need not wait for the device
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
        # the group is not destroyed before the process ends, because NCCL would wait for the other ranks
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
    # gloo's threads end with the last reference to the group; DDP holds one, in a cycle.  A thread that is still
    # about when Python ends may abort the process (SIGABRT, "terminate called without an active exception")
    gc.collect()
    dist.destroy_process_group()


def _store_of_this_attempt(ranks: Ranks, timeout: timedelta) -> dist.Store:
    """Return the store through which the ranks find each other, with separate keys for each attempt of torchrun.

    Symptom without separate keys: "Connection refused".  torchrun keeps its store when it restarts the processes
    (seen in torch 2.15), so a rank that is early finds the address of a dead one.  Nodes may count restarts
    differently, so this is for one node; for several, TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 makes torchrun open a new
    store for each attempt, as in deploy/.
    """
    store, _, _ = next(dist.rendezvous("env://", ranks.rank, ranks.world_size, timeout=timeout))
    if ranks.local_world_size < ranks.world_size:
        return store
    return dist.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)


def _is_about_another_rank(error: Exception) -> bool:
    # gloo has no exception of its own; it raises RuntimeErrors that name its source file
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
    """Return the module to call in training, with batch norms over all ranks and weight gradients averaged over them.

    Args:
        model: on its device, with the same weights on every rank; its batch norms are replaced in place, and
            parameters, buffers and their names stay as they are.
        ranks: the ranks of the run; if there is one, the model itself is returned.
        compiled: compile it with `torch.compile`, anew for each size of the views.
        accumulates: several backward passes add up their gradients under `no_sync`, which DDP can't do with a static
            graph.
        global_bn: False keeps batch norms local to each rank, to measure the cost of their synchronisation.
    """
    if ranks.world_size > 1 and global_bn:
        model = convert_batchnorm(model, ranks.group)
    # compiled inside DDP, because torch.compile can't split a static graph at DDP's buckets
    forward = cast(nn.Module, torch.compile(model, dynamic=False)) if compiled else model
    if ranks.world_size == 1:
        return forward
    device = next(model.parameters()).device
    with warnings.catch_warnings():
        # newer versions of torch (2.15) have renamed broadcast_buffers; older ones (2.8) know only this name
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
    """Average a bucket of gradients over the ranks; each rank sums a part of it, in the order of the ranks.

    gloo's own order of summation depends on a gradient's place in its bucket, and DDP repacks its buckets after the
    first
    step of a process: with three ranks or more, a resumed run would differ in the last bits.
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
    """Return on every rank what `compute()` returns on rank 0, so that only one rank looks at files that may change.

    Raises:
        ValueError, OSError: on rank 0, the error of `compute`.
        RankLost: on the other ranks, so that only rank 0 reports the reason.
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

    Ranks receive a signal in different steps, and their clocks differ.  They must decide together whether to stop, or
    one rank would wait in an all-reduce that the others don't reach.
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
