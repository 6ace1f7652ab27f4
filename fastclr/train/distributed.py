"""Ranks: one process per device, started by torchrun, or the single process that is the trivial case.

torchrun sets RANK, LOCAL_RANK and WORLD_SIZE in the environment of each process; without them there is one
rank, and nothing here talks to anybody.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class Ranks:
    """Who this process is among the processes of the run."""

    rank: int = 0
    """Number of this process, 0 ≤ rank < world_size."""
    world_size: int = 1
    """Processes of the run, over all nodes."""
    local_rank: int = 0
    """Number of this process on its node; the device it owns."""

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
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"RANK and WORLD_SIZE must both be numbers ({error}); start several ranks with torchrun"
        ) from None
    if not 0 <= rank < world_size:
        raise ValueError(f"RANK is {rank} of WORLD_SIZE {world_size}; it must be 0 to {world_size - 1}")
    return Ranks(rank, world_size, local_rank)


def pick_device(name: str, ranks: Ranks) -> torch.device:
    """The device of this rank: `name` is "cpu", "cuda", "cuda:N", or "auto" for a GPU where there is one.

    Raises:
        ValueError: a GPU that this machine does not have.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ValueError(f"train.device is {name!r}; it must be auto, cpu, cuda or cuda:N")
    if device.type == "cpu":
        return device
    if not torch.cuda.is_available():
        raise ValueError(f"train.device is {name!r}, but torch sees no GPU here; use --train.device cpu")
    index = ranks.local_rank if device.index is None else device.index
    if index >= torch.cuda.device_count():
        raise ValueError(f"there is no GPU {index}: torch sees {torch.cuda.device_count()} of them here")
    return torch.device("cuda", index)


@contextmanager
def process_group(ranks: Ranks, device: torch.device) -> Iterator[None]:
    """Join the ranks for the duration of a `with` block: NCCL between GPUs, gloo between CPUs."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if ranks.world_size == 1:
        yield
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()
