"""Batch norm with the statistics of all ranks.

Without it a rank's statistics tell the encoder which images share the rank, and the loss falls by that leak
(Chen et al. 2020, arXiv 2002.05709, section 2.2).  torch's SyncBatchNorm takes only CUDA tensors; this one takes
any, and is written for CPUs, where several ranks serve for tests and small clusters.
"""

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm


class GlobalBatchNorm(_BatchNorm):
    """Batch norm of [B, C, …] with mean and variance over all rows of all ranks.

    The ranks' batches may differ in size, and one may be empty.  Outputs, running statistics and gradients of the sum
    of the ranks' losses equal those of `nn.BatchNorm2d` (and 1d, 3d) on the concatenated batch.  Statistics are
    float32, or float64 for float64 input.

    Args:
        num_features: C.
        process_group: ranks; None: the default group.
        others: the further arguments of `nn.BatchNorm2d`.

    Raises:
        ValueError: in training, fewer than two values per channel over all ranks.
    """

    def __init__(
        self, num_features: int, process_group: dist.ProcessGroup | None = None, **batch_norm: Any
    ) -> None:
        super().__init__(num_features, **batch_norm)
        self.process_group = process_group

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f"batch norm got {input.ndim} dimensions; it needs [B, C, …]")

    def forward(self, input: Tensor) -> Tensor:
        self._check_input_dim(input)
        if not self.training and self.running_mean is not None:
            return F.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        with torch.autocast(input.device.type, enabled=False):
            return self._normalise(input)

    def _normalise(self, input: Tensor) -> Tensor:
        x = input if input.dtype == torch.float64 else input.float()
        over = [d for d in range(x.ndim) if d != 1]
        per_channel = [1, -1] + [1] * (x.ndim - 2)

        # two all-reduces, the mean first: with a single one the sum of squares would cancel in float32
        local_count = x.new_tensor([x.numel() // x.shape[1]])
        sums = _AllReduce.apply(torch.cat([x.sum(over), local_count]), self.process_group)
        count = sums[-1].detach()
        if count < 2:
            raise ValueError(
                f"batch norm got {int(count)} values per channel in training; it needs 2 or more"
            )
        mean = sums[:-1] / count
        centred = x - mean.view(per_channel)
        variance = _AllReduce.apply(centred.square().sum(over), self.process_group) / count

        self._update_running(mean.detach(), variance.detach() * (count / (count - 1)))
        scale = torch.rsqrt(variance + self.eps)
        if self.weight is not None:
            scale = scale * self.weight
        out = centred * scale.view(per_channel)
        if self.bias is not None:
            out = out + self.bias.view(per_channel)
        return out.to(input.dtype)

    @torch.no_grad()
    def _update_running(self, mean: Tensor, unbiased_variance: Tensor) -> None:
        if self.running_mean is None or not self.training or not self.track_running_stats:
            return
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        # no momentum: a plain average over all batches
        momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
        self.running_var.lerp_(unbiased_variance.to(self.running_var.dtype), momentum)


class _AllReduce(torch.autograd.Function):
    """Sums over the ranks; its gradient is the sum of the ranks' gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        ctx.group = group
        total = x.contiguous().clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        total = grads[0].contiguous().clone()
        dist.all_reduce(total, group=ctx.group)
        return total, None


class GlobalBatchNormAct(GlobalBatchNorm):
    """`GlobalBatchNorm` with the dropout and the activation that timm puts into its batch norms."""

    drop: nn.Module
    act: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(x)))


def convert_batchnorm(model: nn.Module, group: dist.ProcessGroup | None = None) -> nn.Module:
    """Make every batch norm of a model global: torch's SyncBatchNorm on CUDA, `GlobalBatchNorm` on the CPU.

    Parameters and buffers are the same tensors as before, under the same names, so state moves freely between a
    converted model and a plain one.  The device of the model's parameters decides: move the model first.

    Args:
        model: changed in place, except where it is a batch norm itself.
        group: ranks; None: the default group.

    Raises:
        ValueError: a batch norm that is neither torch's nor timm's.
    """
    if any(p.is_cuda for p in model.parameters()):
        if any(_is_timms(module) for module in model.modules()):
            from timm.layers import convert_sync_batchnorm

            return convert_sync_batchnorm(model, group)
        return nn.SyncBatchNorm.convert_sync_batchnorm(model, group)
    return _convert(model, group)


def _is_timms(module: nn.Module) -> bool:
    """Whether a module is one of timm's batch norms, which contain a dropout and an activation."""
    return isinstance(module, _BatchNorm) and dict(module.named_children()).keys() == {"drop", "act"}


def _convert(module: nn.Module, group: dist.ProcessGroup | None) -> nn.Module:
    if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)):
        if not _is_timms(module) and type(module).forward is not _BatchNorm.forward:
            raise ValueError(f"{type(module).__name__} has no form that spans ranks; train it on one")
        made = (GlobalBatchNormAct if _is_timms(module) else GlobalBatchNorm)(
            module.num_features,
            group,
            eps=module.eps,
            momentum=module.momentum,
            affine=module.affine,
            track_running_stats=module.track_running_stats,
        )
        if isinstance(made, GlobalBatchNormAct):
            made.drop, made.act = module.get_submodule("drop"), module.get_submodule("act")
        for name in ("weight", "bias"):
            made.register_parameter(name, getattr(module, name))
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            made.register_buffer(name, getattr(module, name))
        return made.train(module.training)
    for name, child in module.named_children():
        setattr(module, name, _convert(child, group))
    return module
