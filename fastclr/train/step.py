"""One training step, from views to updated weights: eager, or captured whole in a CUDA graph.

lr ─▶ zero_grad ─▶ forward ─▶ loss ─▶ backward ─▶ optimizer
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fastclr.train.grad_cache import cached_backward


@dataclass(frozen=True)
class EagerStep:
    """A step that launches its kernels one after the other."""

    forward: nn.Module
    """views [V·n, 3, H, W], view 0 first → (h, z [V·n, D])."""
    loss_of: Callable[[Tensor], Tensor]
    """z → a 0-dim loss, over all ranks if it has a group."""
    optimizer: Optimizer
    autocast: Callable[[], AbstractContextManager]
    """Makes the context of a forward pass."""
    micro_batch: int | None = None
    """Images of this rank in memory at once; None: all."""

    def __call__(self, views: Tensor, lr: float) -> tuple[Tensor, Tensor]:
        """Take a step at learning rate `lr` on views [V, n, 3, H, W]; return the loss and z, detached."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        return self.compute(views)

    def compute(self, views: Tensor) -> tuple[Tensor, Tensor]:
        """Take a step at the learning rate that the optimizer has."""
        self.optimizer.zero_grad(set_to_none=True)
        if self.micro_batch is None:
            with self.autocast():
                _, z = self.forward(views.flatten(0, 1))
            loss = self.loss_of(z)
            loss.backward()
        else:
            loss, z = cached_backward(self.forward, self.loss_of, views, self.micro_batch, self.autocast)
        self.optimizer.step()
        return loss.detach(), z.detach()


class CapturedStep:
    """A step as one CUDA graph, for small images: a GPU computes them in less time than Python takes to launch kernels.

    The first `WARM_UP` steps are ordinary steps of the run, launched kernel by kernel on a stream of their own, as
    capturing requires.  Then the step is captured and, from then on, replayed.  The graph keeps the memory of a step
    for itself.

    Args:
        step: on a CUDA device, of one rank, with an optimizer that reads its rate on the device (LARS).
    """

    WARM_UP = 3

    def __init__(self, step: EagerStep) -> None:
        self._step = step
        self._taken = 0
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, views: Tensor, lr: float) -> tuple[Tensor, Tensor]:
        """Take a step, see `EagerStep.__call__`; z is valid until the next call."""
        if self._taken == 0:
            self._lr = torch.zeros((), device=views.device)
            # one stream for all warm-up steps: torch keeps the memory of a step for the stream that it ran on
            self._side = torch.cuda.Stream()
            for group in self._step.optimizer.param_groups:
                group["lr"] = self._lr
        self._lr.fill_(lr)
        if self._taken < self.WARM_UP:
            self._taken += 1
            return self._on_side_stream(views)
        if self._graph is None:
            self._graph = self._capture(views)
        self._views.copy_(views)
        self._graph.replay()
        loss, z = self._results
        return loss.clone(), z

    def _on_side_stream(self, views: Tensor) -> tuple[Tensor, Tensor]:
        here, side = torch.cuda.current_stream(), self._side
        side.wait_stream(here)
        with torch.cuda.stream(side):
            results = self._step.compute(views)
        here.wait_stream(side)
        for tensor in results:
            tensor.record_stream(here)
        return results

    def _capture(self, views: Tensor) -> torch.cuda.CUDAGraph:
        """Record a step without computing anything."""
        self._views = torch.empty_like(views)
        # gradients that are allocated during the capture are in the graph's memory and need no zeroing in a replay
        self._step.optimizer.zero_grad(set_to_none=True)
        graph = torch.cuda.CUDAGraph()
        # thread_local: loader threads may allocate meanwhile, which is not part of the capture
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self._results = self._step.compute(self._views)
        return graph
