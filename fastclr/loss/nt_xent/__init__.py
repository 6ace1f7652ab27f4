"""NT-Xent, SimCLR's loss: one public function, two implementations.

reference.py   plain torch, any device, one rank or many
fused.py       Triton kernels for CUDA, without the 2N × 2N matrix
metrics.py     contrastive accuracy and entropy, for the log
"""

import torch
import torch.distributed as dist
from torch import Tensor

from fastclr.loss.nt_xent.metrics import ContrastiveMetrics, contrastive_metrics
from fastclr.loss.nt_xent.reference import nt_xent_reference
from fastclr.loss.nt_xent.tiles import MAX_FUSED_WIDTH, MIN_FUSED_TEMPERATURE
from pipelines.system.triton import why_no_triton

__all__ = ["ContrastiveMetrics", "contrastive_metrics", "nt_xent"]

IMPLS = ("auto", "reference", "fused")


def nt_xent(
    z: Tensor, temperature: float, group: dist.ProcessGroup | None = None, impl: str = "auto"
) -> Tensor:
    """Return the normalised temperature-scaled cross-entropy (Chen et al. 2020, arXiv 2002.05709, equation 1).

    For 2n rows, each with the other view of its image as positive and all others as negatives:

        s = normalize(z) @ normalize(z).T / temperature;  s.fill_diagonal_(-inf)
        loss = cross_entropy(s, (arange(2 * n) + n) % (2 * n))

    that is, the mean over the 2n rows as in the paper; the authors' code returns twice that.

    Args:
        z: [2n, D], un-normalised projections, float16, bfloat16, float32 or float64: the n images of this rank
            in view 0, then the same images in view 1 (`torch.cat([z0, z1])`).
        temperature: τ, positive: 0.1 (ImageNet), 0.5 (CIFAR).
        group: ranks whose rows are negatives too, with the same n each (`torch.distributed.group.WORLD`);
            None: only this process, even if there are others.  The loss is the mean over this rank's rows; its
            gradient is such that averaging the ranks' weight gradients, as DDP does, gives exactly the
            gradient of the mean over all rows.
        impl: "reference", "fused", or "auto": fused where it can run, else reference.

    Returns:
        A 0-dim tensor, float32 (float64 for float64 input).

    Raises:
        ValueError: z of another shape, ranks with different n, τ ≤ 0, `impl` unknown or not able to run here.

    >>> z = torch.ones(8, 16)                       # all alike: log(2n − 1)
    >>> round(nt_xent(z, temperature=0.1).exp().item(), 4)
    7.0
    """
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; it must be positive (0.1 ImageNet, 0.5 CIFAR)")
    if impl not in IMPLS:
        raise ValueError(f"nt_xent impl {impl!r} is unknown; there are {', '.join(IMPLS)}")
    if impl == "reference":
        return nt_xent_reference(z, temperature, group)
    reason = _why_not_fused(z, temperature)
    if reason is None:
        from fastclr.loss.nt_xent.fused import nt_xent_fused

        return nt_xent_fused(z, temperature, group)
    if impl == "fused":
        raise ValueError(f"nt_xent impl='fused' can't run here: {reason}; use impl='auto'")
    return nt_xent_reference(z, temperature, group)


def _why_not_fused(z: Tensor, temperature: float) -> str | None:
    if not z.is_cuda:
        return f"z is on {z.device}, and the kernels need a CUDA device"
    if z.dtype == torch.float64:
        return "z is float64, and the kernels compute in half precision"
    if z.ndim == 2 and z.shape[1] > MAX_FUSED_WIDTH:
        return f"z has width {z.shape[1]}, and the kernels take {MAX_FUSED_WIDTH} at most"
    if temperature < MIN_FUSED_TEMPERATURE:
        return f"temperature is {temperature}, and the kernels take {MIN_FUSED_TEMPERATURE} at least"
    if torch.cuda.get_device_capability(z.device) < (8, 0):
        return f"{torch.cuda.get_device_name(z.device)} has a compute capability below 8.0"
    return why_no_triton()
