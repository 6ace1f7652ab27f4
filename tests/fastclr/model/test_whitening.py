"""The whitening filters: their outputs on patches, their negatives, and the stem that holds them."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastclr.model import resnet, whiten
from fastclr.model.whitening import EPSILON, whitening_filters


def correlated_images() -> Tensor:
    """Smooth color images, [600, 3, 12, 12]: neighbouring pixels and channels are alike."""
    noise = torch.randn(600, 3, 14, 14, generator=torch.Generator().manual_seed(0))
    return F.avg_pool2d(noise, 3, 1) * 3 + 0.5 * noise.mean((1, 2, 3), keepdim=True) + 0.3


def test_outputs_are_white() -> None:
    images = correlated_images()
    filters = whitening_filters(images, 2 * 3 * 4 * 4, 4)
    assert (filters.shape, filters.dtype) == ((96, 3, 4, 4), torch.float32)
    assert torch.equal(filters[48:], -filters[:48])
    patches = F.unfold(images, 4, stride=2).transpose(0, 1).flatten(1)
    covariance = torch.cov(patches.double(), correction=0)
    outputs = filters[:48].double().flatten(1) @ patches.double()
    got = torch.cov(outputs, correction=0)
    # λ/(λ + ε), the largest first
    eigenvalues = torch.linalg.eigvalsh(covariance).flip(0)
    want = (eigenvalues / (eigenvalues + EPSILON)).diag()
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4)


def test_fewer_filters_are_the_first_ones() -> None:
    images = correlated_images()
    all_filters = whitening_filters(images, 96, 4)
    some = whitening_filters(images, 9, 4)
    assert torch.equal(some, torch.cat([all_filters[:5], -all_filters[:4]]))
    with pytest.raises(ValueError, match="97 whitening filters"):
        whitening_filters(images, 97, 4)


def test_the_stem() -> None:
    encoder = resnet(10, width=0.25, stem="whitened", stages=3)
    images = correlated_images()
    whiten(encoder, images)
    assert torch.equal(encoder.conv1.weight, whitening_filters(images, 16, 4))
    assert not encoder.conv1.weight.requires_grad
    h = encoder(torch.randn(4, 3, 24, 24))
    h.square().sum().backward()
    assert encoder.conv1.weight.grad is None
    assert encoder.layer1[0].conv1.weight.grad is not None
    # 24 → 12, as the stem "stride2"
    assert encoder.conv1(torch.zeros(1, 3, 24, 24)).shape == (1, 16, 12, 12)
    with pytest.raises(ValueError, match="whitened"):
        whiten(resnet(10, width=0.25, stem="cifar"), images)
