"""One LARS step in plain torch: a few foreach calls, none of which waits for the device.

Legend: w a parameter, g its gradient, v its momentum buffer, μ momentum, λ weight decay, η trust coefficient.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

Tensors = list[Tensor] | tuple[Tensor, ...]

FORMS = ("authors", "popular", "port")

CACHE_BYTES = 1 << 20
"""Bytes of parameters that are stepped together on a CPU: their temporaries stay in the cache, and the memory is reused
for the next ones.  For all parameters at once, fresh memory would cost as much as the arithmetic."""


def foreach_norms(tensors: Tensors) -> Tensor:
    """Return the norm of each tensor, [number of tensors]."""
    return torch.stack(torch._foreach_norm(tensors))


@torch.no_grad()
def reference_step(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    buffers: Sequence[Tensor],
    *,
    lr: float | Tensor,
    momentum: float,
    weight_decay: Sequence[float],
    trust_coefficient: float,
    adapt: Sequence[bool],
    form: str,
    norms: Callable[[Tensors], Tensor] = foreach_norms,
) -> None:
    """Update `params` and `buffers` in place; the other implementations have this signature too.

    With u = g + λw and trust(a, b) = η‖a‖/b, or 1 where ‖a‖ or b is 0 (and 1 where `adapt` is false):

        authors   v ← μv + lr·trust(w, ‖u‖)·u          w ← w − v
        popular   v ← μv + u                           w ← w − lr·trust(w, ‖v‖)·v
        port      v ← μv + trust(w, ‖g‖ + λ‖w‖)·u      w ← w − lr·v       (trust is 1 where ‖g‖ is 0)

    "authors" is the SimCLR authors' code, whose learning rate stays inside the buffer when the rate changes;
    "popular" is its other momentum; "port" is what timm computes, and Bolts and lightly, which leave out the
    decay where ‖g‖ is 0 (all three add 1e-8 to the denominator, and adapt nothing where λ is 0: `LARS` sees to
    that).

    Args:
        params: float32 or float64 tensors of any shapes, on one device.
        grads: tensors of the same shapes; not changed.
        buffers: tensors of the same shapes; zeros before the first step.
        lr: a number, or a 0-dim tensor that may be on the device.
        momentum: μ, 0 to 1.
        weight_decay: λ of each tensor.
        trust_coefficient: η.
        adapt: for each tensor, whether its step is scaled by the trust ratio.
        form: "authors", "popular" or "port".
        norms: function from tensors to their L2 norms, on their device; the apex step passes its own.
    """
    alike: dict[tuple[float, bool, torch.dtype], list[int]] = defaultdict(list)
    for i, (param, decay, adapted) in enumerate(zip(params, weight_decay, adapt, strict=True)):
        alike[decay, adapted, param.dtype].append(i)
    for (decay, adapted, _), members in alike.items():
        for together in _runs(params, members):
            _step_alike(
                [params[i] for i in together],
                [grads[i] for i in together],
                [buffers[i] for i in together],
                lr,
                momentum,
                decay,
                trust_coefficient if adapted else None,
                form,
                norms,
            )


def _runs(params: Sequence[Tensor], members: list[int]) -> Iterator[list[int]]:
    """Split the members into runs of up to CACHE_BYTES; on a GPU, where launches count, into a single run."""
    run: list[int] = []
    num_bytes = 0
    for i in members:
        if run and not params[i].is_cuda and num_bytes + params[i].nbytes > CACHE_BYTES:
            yield run
            run, num_bytes = [], 0
        run.append(i)
        num_bytes += params[i].nbytes
    yield run


def _step_alike(
    params: list[Tensor],
    grads: list[Tensor],
    buffers: list[Tensor],
    lr: float | Tensor,
    momentum: float,
    decay: float,
    trust_coefficient: float | None,
    form: str,
    norms: Callable[[Tensors], Tensor],
) -> None:
    """Take the step for tensors that share decay and adaptation; trust_coefficient None: no adaptation."""
    # a copy even without decay, because the gradients must not change
    updates: Tensors = (
        torch._foreach_add(grads, params, alpha=decay) if decay else torch._foreach_mul(grads, 1)
    )
    if form == "authors":
        _scale(updates, lr, _trust(norms, params, updates, trust_coefficient))
        torch._foreach_mul_(buffers, momentum)
        torch._foreach_add_(buffers, updates)
        torch._foreach_sub_(params, buffers)
    elif form == "popular":
        torch._foreach_mul_(buffers, momentum)
        torch._foreach_add_(buffers, updates)
        trust = _trust(norms, params, buffers, trust_coefficient)
        torch._foreach_copy_(updates, buffers)
        _scale(updates, lr, trust)
        torch._foreach_sub_(params, updates)
    else:
        assert form == "port", form
        _scale(updates, 1.0, _trust(norms, params, grads, trust_coefficient, decay))
        torch._foreach_mul_(buffers, momentum)
        torch._foreach_add_(buffers, updates)
        torch._foreach_copy_(updates, buffers)
        _scale(updates, lr, None)
        torch._foreach_sub_(params, updates)


def _trust(
    norms: Callable[[Tensors], Tensor],
    params: Tensors,
    steps: Tensors,
    trust_coefficient: float | None,
    decay: float = 0.0,
) -> Tensor | None:
    """Return η‖w‖ / (‖step‖ + λ‖w‖), and 1 where either norm is 0: [number of tensors]."""
    if trust_coefficient is None:
        return None
    w, s = norms(params), norms(steps)
    # a select on the device replaces the zeros: testing for them in Python would wait for the device
    return torch.where((w > 0) & (s > 0), trust_coefficient * w / (s + decay * w), 1.0)


def _scale(tensors: Tensors, lr: float | Tensor, trust: Tensor | None) -> None:
    """Multiply the tensors by lr and by the trust ratio of each."""
    factor: Any = lr if trust is None else (lr * trust).unbind()
    torch._foreach_mul_(tensors, factor)
