"""One training step, from views to updated weights: eager, or captured in a CUDA graph.

lr ─▶ zero_grad ─▶ forward ─▶ loss ─▶ backward ─▶ optimizer
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fastclr.train.grad_cache import cached_backward

Loss = Callable[[Tensor], Tensor]
"""z → a 0-dim loss, over all ranks if it has a group."""


class StepResult(NamedTuple):
    """Result of a step on V·n views, view 0 first; without a graph."""

    loss: Tensor
    """0-dim."""
    h: Tensor
    """[V·n, num_features]."""
    z: Tensor
    """[V·n, D]."""


@dataclass(frozen=True)
class EagerStep:
    """A step that launches its kernels one after the other."""

    forward: nn.Module
    """views [V·n, 3, H, W], view 0 first → (h, z [V·n, D])."""
    loss_of: Loss
    """Loss of the steps that are given none of their own."""
    optimizer: Optimizer
    autocast: Callable[[], AbstractContextManager]
    """Makes the context of a forward pass."""
    micro_batch: int | None = None
    """Images of this rank in memory at once; None: all."""

    def __call__(self, views: Tensor, lr: float, loss_of: Loss | None = None) -> StepResult:
        """Take a step at learning rate `lr` on views [V, n, 3, H, W]; `loss_of` replaces the usual loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        return self.compute(views, loss_of)

    def compute(self, views: Tensor, loss_of: Loss | None = None) -> StepResult:
        """Take a step at the learning rate that the optimizer has."""
        loss_of = loss_of or self.loss_of
        self.optimizer.zero_grad(set_to_none=True)
        if self.micro_batch is None:
            with self.autocast():
                h, z = self.forward(views.flatten(0, 1))
            loss = loss_of(z)
            loss.backward()
        else:
            loss, h, z = cached_backward(self.forward, loss_of, views, self.micro_batch, self.autocast)
        self.optimizer.step()
        return StepResult(loss.detach(), h.detach(), z.detach())


class CapturedStep:
    """A step as one CUDA graph, for small images: a GPU computes them in less time than Python takes to launch kernels.

    The first `WARM_UP` steps are ordinary steps of the run, launched kernel by kernel on a stream of their own, as
    capturing requires.  Then the step is captured and, from then on, replayed.  The graph keeps the memory of a step
    for itself.  A graph has one size of views and one loss, whose numbers (the temperature) are constants in it.  When
    either changes, by a schedule, the graph is dropped and all this begins anew.

    Args:
        step: on a CUDA device, of one rank, with an optimizer that reads its rate on the device (LARS).
    """

    WARM_UP = 3

    def __init__(self, step: EagerStep) -> None:
        self._step = step
        self._taken = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._lr: Tensor | None = None
        self._form: tuple[torch.Size, Loss | None] | None = None

    def __call__(self, views: Tensor, lr: float, loss_of: Loss | None = None) -> StepResult:
        """Take a step, see `EagerStep.__call__`; h and z are valid until the next call.

        A loss with other settings must be another object, and one with the same settings the same object.
        """
        if self._form != (views.shape, loss_of):
            self._drop_graph()
            self._form = (views.shape, loss_of)
        if self._lr is None:
            self._lr = torch.zeros((), device=views.device)
            # one stream for all warm-up steps: torch keeps the memory of a step for the stream that it ran on
            self._side = torch.cuda.Stream()
            for group in self._step.optimizer.param_groups:
                group["lr"] = self._lr
        self._lr.fill_(lr)
        if self._taken < self.WARM_UP:
            self._taken += 1
            return self._on_side_stream(views, loss_of)
        if self._graph is None:
            self._graph = self._capture(views, loss_of)
        self._views.copy_(views)
        self._graph.replay()
        return self._results._replace(loss=self._results.loss.clone())

    def _drop_graph(self) -> None:
        """Free the graph and its memory, once its last replay has ended."""
        if self._graph is not None:
            torch.cuda.synchronize()
            self._step.optimizer.zero_grad(set_to_none=True)
            del self._graph, self._views, self._results
        self._graph, self._taken = None, 0

    def _on_side_stream(self, views: Tensor, loss_of: Loss | None) -> StepResult:
        here, side = torch.cuda.current_stream(), self._side
        side.wait_stream(here)
        with torch.cuda.stream(side):
            results = self._step.compute(views, loss_of)
        here.wait_stream(side)
        for tensor in results:
            tensor.record_stream(here)
        return results

    def _capture(self, views: Tensor, loss_of: Loss | None) -> torch.cuda.CUDAGraph:
        """Record a step without computing anything."""
        self._views = torch.empty_like(views)
        # gradients that are allocated during the capture are in the graph's memory and need no zeroing in a replay
        self._step.optimizer.zero_grad(set_to_none=True)
        graph = torch.cuda.CUDAGraph()
        # thread_local: loader threads may allocate meanwhile, which is not part of the capture
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self._results = self._step.compute(self._views, loss_of)
        return graph
