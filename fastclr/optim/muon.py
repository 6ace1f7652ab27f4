"""Muon for the convolutions of an encoder (Jordan et al. 2024, kellerjordan.github.io/posts/muon), LARS elsewhere."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastclr.device import has_bfloat16
from fastclr.optim.lars import LARS

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""a, b, c of the iteration x ← ax + (b·xxᵀ + c·(xxᵀ)²)x: those of the authors, steepest at 0."""
ITERATIONS = 3
"""As in the authors' CIFAR-10 speedrun (airbench94_muon): enough for singular values above 1/75 of their norm."""
IMAGE_CHANNELS = 4
"""A convolution of at most this many input channels sees pixels: the first layer, which stays with LARS."""


class Muon(LARS):
    """LARS, but momentum made orthogonal in the steps of convolutions.

    With g the gradient of a kernel w [out, in, k, k], flattened to [out, in·k²], μ momentum and η trust coefficient:

        v ← μv + g        w ← √out·w/‖w‖ − lr·η/(1 − μ) · orthogonal(g + μv)

    All singular values of a step are about 1, so its norm is √out, or less for a kernel that is taller than wide.  The
    weight is renormalised to that norm, which batch norm behind it makes ineffective otherwise; so a step changes a
    weight by lr·η/(1 − μ) of itself: as much as LARS does in steps of one direction, and for the same learning rates.
    Convolutions of pixels, matrices and vectors take LARS's own steps (form "authors").

    Args:
        params: parameters; those with four dimensions and more than four input channels are Muon's.
        lr, momentum, weight_decay, trust_coefficient, impl: those of `LARS`; Muon's weights have no decay.

    >>> encoder = torch.nn.Conv2d(8, 16, 3, bias=False)
    >>> optimizer = Muon(encoder.parameters(), lr=6.0)
    >>> encoder(torch.randn(1, 8, 5, 5)).square().sum().backward()
    >>> optimizer.step()
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float | Tensor,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float = 1e-3,
        impl: str = "auto",
    ) -> None:
        params = list(params)
        groups = [
            {"params": [p for p in params if is_hidden_convolution(p)], "muon": True},
            {"params": [p for p in params if not is_hidden_convolution(p)], "muon": False},
        ]
        groups = [group for group in groups if group["params"]]
        super().__init__(groups, lr, momentum, weight_decay, trust_coefficient, impl=impl)

    def _step_function(self, number: int, params: list[Tensor]) -> Callable[..., None]:
        if self.param_groups[number]["muon"]:
            return muon_step
        return super()._step_function(number, params)


def is_hidden_convolution(param: Tensor) -> bool:
    """Whether a parameter is the kernel of a convolution that does not see pixels."""
    return param.ndim == 4 and param.shape[1] > IMAGE_CHANNELS


@torch.no_grad()
def muon_step(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    buffers: Sequence[Tensor],
    *,
    lr: float | Tensor,
    momentum: float,
    trust_coefficient: float,
    **_: Any,
) -> None:
    """Update `params` and `buffers` in place, as `Muon` says; the signature is that of LARS's steps."""
    rate = lr * trust_coefficient / (1 - momentum)
    for param, grad, buffer in zip(params, grads, buffers, strict=True):
        buffer.mul_(momentum).add_(grad)
        step = orthogonal(grad.add(buffer, alpha=momentum).flatten(1)).view(param.shape)
        param.mul_(len(param) ** 0.5 / param.norm().clamp_min(1e-12))
        param.sub_(step.to(param.dtype) * rate)


def orthogonal(matrix: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return about U Vᵀ of the singular value decomposition U S Vᵀ, by a Newton-Schulz iteration.

    Args:
        matrix: [rows, columns].
        dtype: of the matrix products; None: bfloat16 where the hardware has it, else float32; float64 for float64.

    Returns:
        [rows, columns], in `dtype`; singular values of more than 1/75 of the matrix's norm become 0.5 to 1.21.

    >>> torch.linalg.svdvals(orthogonal(torch.diag(torch.tensor([3.0, 2.0])), torch.float64)).min() > 0.5
    tensor(True)
    """
    if dtype is None and matrix.dtype != torch.float64:
        dtype = torch.bfloat16 if has_bfloat16(matrix.device) else torch.float32
    a, b, c = COEFFICIENTS
    x = (matrix / matrix.norm().clamp_min(1e-12)).to(dtype)
    is_tall = x.shape[0] > x.shape[1]
    if is_tall:
        x = x.T
    for _ in range(ITERATIONS):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return x.T if is_tall else x
