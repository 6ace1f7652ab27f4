"""One LARS step in plain torch: a few foreach calls, and nothing that waits for the device.

Legend: w a parameter, g its gradient, v its momentum buffer, μ momentum, λ weight decay, η trust coefficient.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Tensors = list[Tensor] | tuple[Tensor, ...]

FORMS = ("authors", "popular", "port")


def foreach_norms(tensors: Tensors) -> Tensor:
    """‖t‖ of each tensor, [number of tensors]."""
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
    decay where ‖g‖ is 0 (all three add 1e-8 to the denominator).

    Args:
        params: float32 or float64 tensors of any shapes, on one device.
        grads: as `params`; not changed.
        buffers: as `params`; zeros before the first step.
        lr: a number, or a 0-dim tensor that may live on the device.
        momentum: μ, 0 to 1.
        weight_decay: λ of each tensor.
        trust_coefficient: η.
        adapt: of each tensor, whether its step is scaled by the trust ratio.
        form: "authors", "popular" or "port".
        norms: ‖t‖ of each of some tensors, on their device; here a choice of the apex step's.
    """
    alike: dict[tuple[float, bool, torch.dtype], list[int]] = defaultdict(list)
    for i, (param, decay, adapted) in enumerate(zip(params, weight_decay, adapt, strict=True)):
        alike[decay, adapted, param.dtype].append(i)
    for (decay, adapted, _), members in alike.items():
        _step_alike(
            [params[i] for i in members],
            [grads[i] for i in members],
            [buffers[i] for i in members],
            lr,
            momentum,
            decay,
            trust_coefficient if adapted else None,
            form,
            norms,
        )


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
    """The step for tensors that share decay and adaptation; no trust coefficient: no adaptation."""
    updates: Tensors = torch._foreach_add(grads, params, alpha=decay) if decay else grads
    if form == "authors":
        updates = _scaled(updates, lr, _trust(norms, params, updates, trust_coefficient))
        torch._foreach_mul_(buffers, momentum)
        torch._foreach_add_(buffers, updates)
        torch._foreach_sub_(params, buffers)
    elif form == "popular":
        torch._foreach_mul_(buffers, momentum)
        torch._foreach_add_(buffers, updates)
        torch._foreach_sub_(params, _scaled(buffers, lr, _trust(norms, params, buffers, trust_coefficient)))
    else:
        assert form == "port", form
        updates = _scaled(updates, 1.0, _trust(norms, params, grads, trust_coefficient, decay))
        torch._foreach_mul_(buffers, momentum)
        torch._foreach_add_(buffers, updates)
        torch._foreach_sub_(params, _scaled(buffers, lr, None))


def _trust(
    norms: Callable[[Tensors], Tensor],
    params: Tensors,
    steps: Tensors,
    trust_coefficient: float | None,
    decay: float = 0.0,
) -> Tensor | None:
    """[number of tensors]: η‖w‖ / (‖step‖ + λ‖w‖), and 1 where either norm is 0."""
    if trust_coefficient is None:
        return None
    w, s = norms(params), norms(steps)
    # the zeros are replaced by a select on the device: asking for them in Python would wait for it
    return torch.where((w > 0) & (s > 0), trust_coefficient * w / (s + decay * w), 1.0)


def _scaled(tensors: Tensors, lr: float | Tensor, trust: Tensor | None) -> Tensors:
    """Copies of the tensors, times lr, times the trust ratio of each."""
    factor: Any = lr if trust is None else (lr * trust).unbind()
    return torch._foreach_mul(tensors, factor)
