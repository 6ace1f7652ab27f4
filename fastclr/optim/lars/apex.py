"""The LARS step on NVIDIA apex's multi-tensor norms, for images that ship apex (NGC's PyTorch images do).

apex removed its own LARC in 2025, but still has `amp_C.multi_tensor_l2norm`: the norms of all tensors in one or two
launches, where torch's foreach operations take one launch per few dozen tensors.  The rest of the step is that of
`reference_step`.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastclr.optim.lars.reference import Tensors, reference_step

CHUNK = 2048 * 32
"""Elements per thread block: apex's own value."""


def apex_step(
    params: Sequence[Tensor], grads: Sequence[Tensor], buffers: Sequence[Tensor], **settings: Any
) -> None:
    """Update `params` and `buffers` in place; `reference_step` has the equations and the arguments.

    Raises:
        ValueError: where apex is missing, or was installed without its CUDA extensions.
    """
    multi_tensor_l2norm = find_l2norm()

    def norms(tensors: Tensors) -> Tensor:
        overflow = torch.zeros(1, dtype=torch.int32, device=tensors[0].device)  # apex needs it; not read here
        return multi_tensor_l2norm(CHUNK, overflow, [list(tensors)], True)[1]

    reference_step(params, grads, buffers, norms=norms, **settings)


def find_l2norm() -> Any:
    """Return apex's function for the norms of many tensors.  ValueError: it is not installed."""
    try:
        import amp_C
    except ImportError as error:
        raise ValueError(
            "LARS impl='apex' needs NVIDIA apex with its CUDA extensions (amp_C), which NVIDIA's NGC PyTorch images"
            " ship and no package index does (`apex` there is another project): use impl='auto'"
        ) from error
    return amp_C.multi_tensor_l2norm
