"""A first convolution that whitens patches of the images, computed before the training and then left as it is.

Jordan 2024 (arXiv 2404.00498, section 3.2), after Page's CIFAR-10 speedruns.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastclr.model.resnet import ResNet

EPSILON = 1e-2
"""Added to the eigenvalues, which are variances of normalised pixels: keeps the noise of the last filters small."""


@torch.no_grad()
def whiten(encoder: nn.Module, images: Tensor) -> None:
    """Set the first convolution of a ResNet with the stem "whitened" to the whitening filters of images.

    Args:
        encoder: the ResNet, made by `resnet(…, stem="whitened")`.
        images: float [N, 3, H, W], normalised as for training: crops without color jitter, a thousand or more.

    Raises:
        ValueError: an encoder of another stem.
    """
    if not isinstance(encoder, ResNet) or encoder.stem != "whitened":
        raise ValueError('whiten got an encoder of another stem; make it with resnet(…, stem="whitened")')
    weight = encoder.conv1.weight
    assert isinstance(weight, Tensor)
    weight.copy_(whitening_filters(images, len(weight), weight.shape[-1]))


def whitening_filters(images: Tensor, num_filters: int, kernel: int) -> Tensor:
    """Return filters whose outputs on patches of the images are uncorrelated and of variance 1, and their negatives.

        filter_i = v_i / √(λ_i + ε),     λ_i, v_i eigenvalues and eigenvectors of the patches' covariance, largest first

    The negatives keep what a ReLU would lose.

    Args:
        images: float [N, 3, H, W].
        num_filters: F; the first ⌈F/2⌉ filters and ⌊F/2⌋ of their negatives.
        kernel: k, side of a patch in pixels; F is at most 2·3·k².

    Returns:
        float32 [F, 3, k, k], on the device of the images.

    Raises:
        ValueError: more filters than that.
    """
    half = -(-num_filters // 2)
    if half > 3 * kernel**2:
        raise ValueError(
            f"{num_filters} whitening filters of {kernel}×{kernel} pixels; there are {6 * kernel**2} at most: "
            "lower the width"
        )
    # in parts: the patches take k² times the memory of the images
    covariance = torch.zeros(3 * kernel**2, 3 * kernel**2, dtype=torch.float64, device=images.device)
    mean, count = covariance.new_zeros(3 * kernel**2), 0
    for part in images.float().split(256):
        patches = F.unfold(part, kernel, stride=2).transpose(0, 1).flatten(1)
        covariance += (patches @ patches.T).double()
        mean += patches.sum(1).double()
        count += patches.shape[1]
    mean /= count
    eigenvalues, vectors = torch.linalg.eigh(covariance / count - mean.outer(mean))
    filters = (vectors / (eigenvalues.clamp_min(0) + EPSILON).sqrt()).T.flip(0)[:half]
    return torch.cat([filters, -filters])[:num_filters].float().view(-1, 3, kernel, kernel)
