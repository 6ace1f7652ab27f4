"""Warm-up before the clock: steps on random pixels, after which weights, optimizer and generators are as before.

Compilers, autotuners and CUDA graphs do their one-time work in these steps.  Everything is restored in place, because
a captured graph keeps the addresses of the tensors that it was captured with.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from fastclr.train.pretrain import Pretraining
from fastclr.train.step import CapturedStep
from pipelines.contracts import Batch

STEPS = CapturedStep.WARM_UP + 2
"""Steps per size of a view: those before a graph is captured, the capture, and a replay."""


def warm_up(task: Pretraining, sizes: Iterable[int], steps: int = STEPS) -> None:
    """Take steps on random pixels at each size of a view, then restore the state from before.

    Args:
        task: the task of a run that has taken no step yet.
        sizes: pixels of a view in each stage of the run.
        steps: steps at each size.

    Raises:
        ValueError: the optimizer has a state already, so the run has begun.
    """
    if task.optimizer.state:
        raise ValueError("the warm-up is for a run that has taken no step, and this optimizer has a state")
    device = next(task.model.parameters()).device
    images = task.config.train.batch_size // task.ranks.world_size
    with _restored(task.model, task.optimizer, device):
        generator = torch.Generator(device).manual_seed(0)
        half = device.type == "cuda" and task.config.train.precision == "bfloat16"
        for size in sizes:
            for number in range(steps):
                pixels = torch.randn(2 * images, 3, size, size, device=device, generator=generator)
                pixels = pixels.contiguous(memory_format=torch.channels_last)
                views = (pixels.bfloat16() if half else pixels).unflatten(0, (2, images))
                numbers = torch.arange(images)
                _, output = task.take_step(Batch(views, -torch.ones_like(numbers), numbers, 0, number), 1e-3)
                task.metrics(output)
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def _restored(model: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device) -> Iterator[None]:
    """Restore weights, buffers, the optimizer's state and torch's generators after the block, in place."""
    saved = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rates = [group["lr"] for group in optimizer.param_groups]
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            tensor.copy_(saved[name])
        # every optimizer of a recipe starts from zeros: momenta, moments, and the count of steps
        for state in optimizer.state.values():
            for value in state.values():
                if isinstance(value, torch.Tensor):
                    value.zero_()
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        # a captured step keeps its rate in a tensor, which it fills before each step
        if not isinstance(group["lr"], torch.Tensor):
            group["lr"] = rate
    optimizer.zero_grad(set_to_none=True)
