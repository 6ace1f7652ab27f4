"""extract_features: frozen means frozen, and the order is the loader's."""

import pytest
import torch
from torch import nn

from fastclr.evaluate.features import (
    assert_unchanged,
    eval_mode,
    extract_features,
    feature_batches,
    state_digest,
)
from pipelines.contracts import Batch


def batch_of(pixels: torch.Tensor, first: int = 0) -> Batch:
    numbers = torch.arange(first, first + pixels.shape[1])
    return Batch(pixels, labels=numbers % 3, indices=numbers, epoch=0, step=0)


def small_encoder() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def test_features_are_the_encoders_output_in_eval_mode_in_the_loaders_order():
    encoder = small_encoder()
    encoder[1].running_mean.fill_(0.3)
    images = torch.randn(7, 3, 8, 8)  # 7 = 4 + 3: a short last batch
    features, labels = extract_features(encoder, [batch_of(images[None, :4]), batch_of(images[None, 4:], 4)])
    assert encoder.training
    torch.testing.assert_close(features, encoder.eval()(images).detach())
    assert labels.tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert features.dtype == torch.float32
    assert not features.requires_grad


def test_batch_statistics_do_not_move():
    encoder = small_encoder()
    with assert_unchanged(encoder):
        extract_features(encoder, [batch_of(torch.randn(1, 5, 3, 8, 8))])
    with pytest.raises(AssertionError, match="changed while it was evaluated"), assert_unchanged(encoder):
        encoder(torch.randn(5, 3, 8, 8))  # training mode: the running statistics drift


def test_digest_sees_weights_buffers_and_names():
    layer = nn.BatchNorm1d(3)
    digest = state_digest(layer)
    assert state_digest(nn.BatchNorm1d(3)) == digest
    layer.num_batches_tracked += 1
    assert state_digest(layer) != digest
    half = nn.BatchNorm1d(3).to(torch.bfloat16)
    assert state_digest(half) == state_digest(nn.BatchNorm1d(3).to(torch.bfloat16)) != digest
    assert state_digest(nn.Linear(2, 2, bias=False)) != state_digest(nn.Linear(4, 1, bias=False))


def test_modes_come_back_module_by_module():
    encoder = small_encoder()
    encoder[1].eval()  # as in a fine-tuning with frozen statistics
    with eval_mode(encoder):
        assert not any(part.training for part in encoder.modules())
    assert [part.training for part in encoder] == [True, False, True, True]


def test_a_suspended_iteration_leaves_the_callers_gradients_alone():
    stream = feature_batches(small_encoder(), [batch_of(torch.randn(1, 2, 3, 8, 8))] * 2)
    h, _ = next(stream)
    assert not h.requires_grad
    weight = torch.ones(4, requires_grad=True)
    (h @ weight).sum().backward()
    assert weight.grad is not None


def test_autocast_gives_half_precision_results_as_float32():
    layer = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    batch = batch_of(torch.randn(1, 5, 3, 2, 2))
    full, _ = extract_features(layer, [batch])
    half, _ = extract_features(layer, [batch], autocast=torch.bfloat16)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, half.bfloat16().float(), rtol=0, atol=0)
    assert 0 < (half - full).abs().max() < 0.05


def test_two_views_and_empty_loaders_are_refused():
    with pytest.raises(ValueError, match=r"one view per image, the loader gives 2.*ViewSpec\.center"):
        extract_features(nn.Flatten(), [batch_of(torch.zeros(2, 4, 3, 2, 2))])
    with pytest.raises(ValueError, match="no batch"):
        extract_features(nn.Flatten(), [])


def test_features_that_are_not_finite_are_refused():
    """Of NaN every neighbour is as near, and an accuracy would come out."""
    with pytest.raises(ValueError, match="features that are not finite"):
        extract_features(nn.Flatten(), [batch_of(torch.full((1, 2, 3, 4, 4), float("nan")))])
