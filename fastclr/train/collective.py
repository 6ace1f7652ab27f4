"""What the ranks of a run do together; with a single process each of these functions is the trivial one."""

import warnings
from collections.abc import Callable
from functools import reduce
from typing import TypeVar, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fastclr.loss.rows import gather_rows
from fastclr.model.global_bn import convert_batchnorm
from fastclr.train.distributed import RankLost, Ranks

Answer = TypeVar("Answer")


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


def from_main(ranks: Ranks, compute: Callable[[], Answer]) -> Answer:
    """What `compute()` returns on rank 0, on every rank: only one looks at files that others may be writing.

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


def agree(ranks: Ranks, *wishes: int) -> tuple[int, ...]:
    """The largest of each wish over all ranks, on every rank: numbers on the CPU, the device is not waited for.

    A signal reaches the ranks in different steps, and clocks differ: what ends a step must be decided together,
    or one rank waits in an all-reduce that the others don't do.
    """
    if ranks.world_size == 1:
        return wishes
    votes = torch.tensor([int(wish) for wish in wishes])
    dist.all_reduce(votes, dist.ReduceOp.MAX)
    return tuple(votes.tolist())


def mean_over_ranks(values: Tensor, ranks: Ranks) -> Tensor:
    """Values of this shape, averaged over the ranks."""
    if ranks.world_size == 1:
        return values
    total = values.clone()
    dist.all_reduce(total)
    return total / ranks.world_size
