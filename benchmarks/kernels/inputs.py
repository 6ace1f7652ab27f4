"""Inputs of the benchmarks: random pictures and parameters, the same every time."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipelines.contracts import BatchPlan
from pipelines.views import ViewSpec, draw_views


class DrawnCrops(NamedTuple):
    """Crops of one group of views."""

    plan: BatchPlan
    pixels: np.ndarray | Tensor
    """uint8 [V, B, H, W, 3]."""


def drawn_crops(spec: ViewSpec, batch_size: int, device: torch.device, seed: int = 0) -> DrawnCrops:
    """Return smooth pictures with some noise, uint8 [V, B, S, S, 3] on the device, and their drawn numbers."""
    generator = torch.Generator(device).manual_seed(seed)
    shape = (spec.num_views, batch_size, 3)
    coarse = torch.rand(spec.num_views * batch_size, 3, 7, 7, generator=generator, device=device)
    pixels = torch.nn.functional.interpolate(coarse, (spec.size, spec.size), mode="bicubic") * 255
    pixels += 4 * torch.randn(pixels.shape, generator=generator, device=device)
    pixels = (
        pixels.clamp(0, 255).byte().view(*shape, spec.size, spec.size).permute(0, 1, 3, 4, 2).contiguous()
    )
    indices, sides = np.arange(batch_size), np.full(batch_size, 2 * spec.size)
    plan = BatchPlan(0, 0, indices, draw_views(spec, seed, 0, indices, sides, sides))
    return DrawnCrops(plan, pixels if device.type == "cuda" else pixels.numpy())


def random_parameters(shapes: list[torch.Size], device: torch.device) -> list[Tensor]:
    """Return weights of the size of initial ones, each with a gradient."""
    generator = torch.Generator(device).manual_seed(0)
    params = []
    for shape in shapes:
        p = (0.05 * torch.randn(shape, generator=generator, device=device)).requires_grad_()
        p.grad = 0.01 * torch.randn(shape, generator=generator, device=device)
        params.append(p)
    return params
