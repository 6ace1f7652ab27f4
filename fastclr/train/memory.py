"""How much memory a training step on a CPU will take, before it is taken.

Where memory runs out there, the system kills the process, without a word and perhaps minutes into the run.
"""

import copy

import torch
from torch import nn

from fastclr.config import Config
from pipelines.system.memory import available_memory

BATCHES = 4
"""Batches of views in memory at a time: the one being trained on, one in the making, two that wait."""
COPIES = 4
"""What there is of each weight: itself, its gradient, its momentum, and a share of the temporary memory."""


def check_memory(config: Config, model: nn.Module, local_ranks: int = 1, world_size: int = 1) -> None:
    """Raise a ValueError if a step on this CPU would need more memory than there is.

    Args:
        config: resolved.
        model: on the CPU, with views [B, 3, H, W] as input; stays as it is.
        local_ranks: processes of the run on this machine, which share its memory.
        world_size: processes of the run in all, which share a batch.
    """
    batch_size, size = config.train.batch_size // world_size, config.views.size
    at_once = config.train.micro_batch or batch_size
    kept = activation_bytes(model, size, config.train.precision == "bfloat16")
    weights = sum(p.nbytes for p in model.parameters())
    views = 2 * batch_size * 3 * size**2 * 4
    needed = 2 * at_once * kept + BATCHES * views + COPIES * weights
    available = available_memory() // local_ranks
    if needed > available:
        raise ValueError(
            f"a step of {batch_size} images of {size} px needs about {needed / 2**30:.0f} GiB of memory, "
            f"{available / 2**30:.0f} GiB are available; lower --train.batch-size, or take a recipe for CPUs "
            "(cifar10-cpu)"
        )


def activation_bytes(model: nn.Module, size: int, bfloat16: bool = False) -> int:
    """Bytes per view that a forward pass keeps for the backward pass, without weights: tried with two views."""
    model = copy.deepcopy(model).train()
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    views = torch.zeros(2, 3, size, size).contiguous(memory_format=torch.channels_last)
    with (
        torch.autocast("cpu", torch.bfloat16, bfloat16),
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
    ):
        _ = model(views)  # its graph holds the memory, so that no address is used twice
    return sum(kept.values()) // 2
