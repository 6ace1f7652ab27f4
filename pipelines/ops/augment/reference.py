"""The augmentation in plain torch: the reference of the fused forms, and their fallback.

From a uint8 crop, on x = crop / 255 in float32, torchvision's float semantics:

1. where `jitter`: brightness, contrast, saturation, hue in the view's drawn order, each clamped to [0, 1];
2. where `grayscale`: all channels become 0.2989 R + 0.587 G + 0.114 B;
3. where `blur_sigma > 0`: Gaussian blur with `spec.blur_kernel` taps, borders reflected;
4. where x ≥ `solarize`: 1 − x;
5. (x − mean) / std.

Shape letters: V views per image, B images, N = V·B views, H and W the size of a view.
"""

import numpy as np
import torch
import torch.nn.functional as F

from pipelines.views import ViewParams, ViewSpec

LUMA = (0.2989, 0.587, 0.114)
"""torchvision's weights of R, G and B in a gray value (ITU-R 601, rounded so that they sum to 0.9999)."""


def augment(
    crops: np.ndarray | torch.Tensor,
    params: ViewParams,
    spec: ViewSpec,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Jitter, gray, blur, solarize and normalise crops by their drawn numbers.

    Args:
        crops: uint8 [V, B, H, W, 3], on any device.
        params: the numbers of these views, arrays [V, B, …].
        spec: gives the blur's kernel size, mean and std.
        dtype: of the result; the arithmetic is float32.

    Returns:
        [V, B, 3, H, W] on the pixels' device, channels last in memory.
    """
    pixels = torch.as_tensor(crops)
    device = pixels.device

    def per_view(array: np.ndarray) -> torch.Tensor:
        return torch.as_tensor(array, device=device).flatten(0, 1)

    x = pixels.flatten(0, 1).permute(0, 3, 1, 2).float() / 255
    jitter, order, factors = (
        per_view(params.jitter),
        per_view(params.jitter_order),
        per_view(params.jitter_factors).float(),
    )
    for step in range(4):
        for operation, adjust in enumerate(
            (adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue)
        ):
            rows = torch.nonzero(jitter & (order[:, step] == operation))[:, 0]
            if len(rows):
                x[rows] = adjust(x[rows], factors[rows, operation])
    rows = torch.nonzero(per_view(params.grayscale))[:, 0]
    x[rows] = to_gray(x[rows]).expand_as(x[rows])
    sigma = per_view(params.blur_sigma).float()
    rows = torch.nonzero(sigma > 0)[:, 0]
    if len(rows):
        x[rows] = gaussian_blur(x[rows], sigma[rows], spec.blur_kernel)
    threshold = per_view(params.solarize).float()
    rows = torch.nonzero(threshold <= 1)[:, 0]
    if len(rows):
        x[rows] = torch.where(x[rows] >= threshold[rows].view(-1, 1, 1, 1), 1 - x[rows], x[rows])
    mean, std = (torch.tensor(values, device=device).view(3, 1, 1) for values in (spec.mean, spec.std))
    x = ((x - mean) / std).to(dtype, memory_format=torch.channels_last)
    return x.unflatten(0, pixels.shape[:2])


def to_gray(x: torch.Tensor) -> torch.Tensor:
    """Return the gray values [N, 1, H, W] of x [N, 3, H, W]."""
    return LUMA[0] * x[:, 0:1] + LUMA[1] * x[:, 1:2] + LUMA[2] * x[:, 2:3]


def blend(x: torch.Tensor, other: torch.Tensor | float, factor: torch.Tensor) -> torch.Tensor:
    """Return factor · x + (1 − factor) · other, clamped; factor [N], one per view, extrapolates above 1."""
    factor = factor.view(-1, 1, 1, 1)
    return (factor * x + (1 - factor) * other).clamp(0, 1)


def adjust_brightness(x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Scale x [N, 3, H, W] by factor [N] ≥ 0."""
    return blend(x, 0.0, factor)


def adjust_contrast(x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Move x [N, 3, H, W] away from (factor > 1) or towards the mean of its current gray values."""
    return blend(x, to_gray(x).mean((1, 2, 3), keepdim=True), factor)


def adjust_saturation(x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Move x [N, 3, H, W] away from (factor > 1) or towards its own gray values."""
    return blend(x, to_gray(x), factor)


def adjust_hue(x: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """Turn the hue of x [N, 3, H, W] by shift [N] turns; saturation and value (of HSV) stay the same.

    With maximum v, chroma c and hue h in sixths of a turn, a channel is v − c · clamp(min(k, 4 − k), 0, 1),
    k = (n + h) mod 6, n = 5, 3, 1 for R, G, B.
    """
    r, g, b = x.unbind(1)
    v, c = x.amax(1), x.amax(1) - x.amin(1)
    divisor = torch.where(c == 0, 1, c)
    h = torch.where(
        v == r, (g - b) / divisor, torch.where(v == g, 2 + (b - r) / divisor, 4 + (r - g) / divisor)
    )
    h = h + 6 * shift.view(-1, 1, 1)
    k = torch.stack([(n + h) % 6 for n in (5, 3, 1)], 1)
    return v[:, None] - c[:, None] * torch.minimum(k, 4 - k).clamp(0, 1)


def gaussian_blur(x: torch.Tensor, sigma: torch.Tensor, taps: int) -> torch.Tensor:
    """Blur x [N, 3, H, W] by separable Gaussians of sigma [N] pixels, cut to an odd number of taps."""
    radius = taps // 2
    distance = torch.arange(-radius, radius + 1, device=x.device)
    weights = torch.exp(-0.5 * (distance / sigma[:, None]) ** 2)
    weights = (weights / weights.sum(1, keepdim=True)).view(-1, taps, 1, 1, 1)
    for axis in (2, 3):
        size = x.shape[axis]
        padded = F.pad(x, (radius, radius, 0, 0) if axis == 3 else (0, 0, radius, radius), mode="reflect")
        shifted = (padded.narrow(axis, tap, size) for tap in range(taps))
        x = sum((weights[:, tap] * part for tap, part in enumerate(shifted)), torch.zeros_like(x))
    return x
