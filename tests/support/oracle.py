"""torchvision as the reference of what a crop and an augmentation are, given the drawn numbers.

Both functions are slow and plain on purpose: they use torchvision's public functional transforms and nothing
of this project but its data classes.
"""

import numpy as np
import torch
import torchvision.transforms.v2.functional as F

from pipelines.views import ViewParams, ViewSpec


def crop_oracle(image: np.ndarray, box: np.ndarray, flip: bool, size: int | tuple[int, int]) -> np.ndarray:
    """The crop by torchvision's float path, rounded half to even, then flipped.

    Args:
        image: uint8 [h, w, 3], RGB.
        box: top, left, height, width, pixels.
        flip: mirror left to right.
        size: side of the result, or (height, width).

    Returns:
        uint8 [H, W, 3].
    """
    top, left, height, width = (int(number) for number in box)
    out_size = [size, size] if isinstance(size, int) else list(size)
    pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1).float()
    crop = F.resized_crop(pixels, top, left, height, width, out_size, antialias=True).round().clamp(0, 255)
    if flip:
        crop = F.horizontal_flip(crop)
    return crop.to(torch.uint8).permute(1, 2, 0).contiguous().numpy()


def augment_oracle(
    crop: np.ndarray, params: ViewParams, spec: ViewSpec, threshold_margin: float = 1e-4
) -> torch.Tensor:
    """Color jitter in the drawn order, grayscale, blur, solarization by torchvision in float32, before normalisation.

    Args:
        crop: uint8 [H, W, 3], already flipped.
        params: the numbers of this one view, arrays without their [V, B] dimensions (`params[v, b]`).
        spec: gives the number of the blur's taps.
        threshold_margin: values so near to the threshold of a solarization are NaN: rounding decides their side.

    Returns:
        float32 [3, H, W] in [0, 1].
    """
    x = torch.from_numpy(np.ascontiguousarray(crop)).permute(2, 0, 1).float() / 255
    if params.jitter:
        adjust = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)
        for operation in params.jitter_order:
            x = adjust[operation](x, float(params.jitter_factors[operation])).clamp(0, 1)
    if params.grayscale:
        x = F.rgb_to_grayscale(x, num_output_channels=3)
    if params.blur_sigma > 0:
        x = F.gaussian_blur(x, [spec.blur_kernel] * 2, [float(params.blur_sigma)] * 2)
    if np.isfinite(params.solarize):
        threshold = float(params.solarize)
        undecided = (x - threshold).abs() < threshold_margin
        x = F.solarize(x, threshold).masked_fill(undecided, torch.nan)
    return x
