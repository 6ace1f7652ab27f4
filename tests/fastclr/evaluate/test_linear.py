"""The linear probe's protocol, transcribed; and L-BFGS against the condition of an optimum."""

import math

import numpy as np
import pytest
import torch

from fastclr.evaluate import linear_probe, logistic_regression
from fastclr.evaluate.linear import train_head
from fastclr.evaluate.logistic import fit_logistic


def softmax(logits: np.ndarray) -> np.ndarray:
    e = np.exp(logits - logits.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def clusters(num: int, seed: int, spread: float = 0.3, dead: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Three clusters around the axes of a five-dimensional space."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(num) % 3
    features = torch.eye(3, 5)[labels] + spread * torch.randn(num, 5, generator=generator)
    return torch.cat([features, torch.zeros(num, dead)], 1), labels


def test_head_is_trained_as_the_protocol_says():
    """Zero start, lr = 0.1·B/256, cosine to 0 per step, Nesterov 0.9, weight decay: in numpy, by hand."""
    x, y = clusters(24, seed=1)
    epochs, steps, decay, lr = 3, 2, 0.01, 12.8  # B = 12: peak lr 0.6, so that an error shows
    head = train_head(
        lambda epoch: [(x[:12], y[:12]), (x[12:], y[12:])],
        num_features=5,
        num_classes=3,
        epochs=epochs,
        steps_per_epoch=steps,
        batch_size=12,
        base_lr=lr,
        weight_decay=decay,
    )
    w, b = np.zeros((3, 5)), np.zeros(3)
    velocity_w, velocity_b = np.zeros_like(w), np.zeros_like(b)
    for step in range(epochs * steps):
        rows = slice(12 * (step % 2), 12 * (step % 2) + 12)
        features, target = x[rows].double().numpy(), np.eye(3)[y[rows]]
        error = (softmax(features @ w.T + b) - target) / 12
        gradient_w, gradient_b = error.T @ features + decay * w, error.sum(0) + decay * b
        velocity_w, velocity_b = 0.9 * velocity_w + gradient_w, 0.9 * velocity_b + gradient_b
        rate = lr * 12 / 256 * 0.5 * (1 + math.cos(math.pi * step / (epochs * steps)))
        w -= rate * (gradient_w + 0.9 * velocity_w)
        b -= rate * (gradient_b + 0.9 * velocity_b)
    np.testing.assert_allclose(head.weight.detach().numpy(), w, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(head.bias.detach().numpy(), b, rtol=1e-4, atol=1e-6)


def test_separable_classes_are_learned_and_shuffled_labels_are_not():
    train, test = clusters(300, seed=1), clusters(90, seed=2)
    assert linear_probe(*train, *test, epochs=20, batch_size=32) > 0.95
    shuffled = train[1][torch.randperm(300, generator=torch.Generator().manual_seed(0))]
    assert linear_probe(train[0], shuffled, *test, epochs=20, batch_size=32) < 0.6


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_features_of_any_type(dtype):
    x, y = clusters(40, seed=0)
    assert linear_probe(x.to(dtype), y, x.to(dtype), y, epochs=5) == linear_probe(
        x.to(dtype).float(), y, x.to(dtype).float(), y, epochs=5
    )


def test_epoch_e_takes_pass_e_mod_p():
    x, y = clusters(30, seed=1)
    poisoned = torch.stack([x, x * math.nan])
    assert linear_probe(poisoned, y, x, y, epochs=1, batch_size=7) == linear_probe(
        x, y, x, y, epochs=1, batch_size=7
    )
    with pytest.raises(ValueError, match="diverged in epoch 1"):
        linear_probe(poisoned, y, x, y, epochs=2, batch_size=7)


def test_the_seed_decides_the_order():
    x, y = clusters(30, seed=1, spread=2.0)
    test = clusters(300, seed=2, spread=2.0)
    settings = {"epochs": 2, "batch_size": 3, "base_lr": 10.0}
    first = linear_probe(x, y, *test, **settings)
    assert first == linear_probe(x, y, *test, **settings)
    assert len({linear_probe(x, y, *test, **settings, seed=seed) for seed in range(6)}) > 1


def test_a_schedule_of_another_length_is_refused():
    x, y = clusters(8, seed=1)
    with pytest.raises(ValueError, match="epoch 0 had 1 batches, not 4"):
        train_head(
            lambda epoch: [(x, y)], num_features=5, num_classes=3, epochs=2, steps_per_epoch=4, batch_size=8
        )


def test_what_does_not_fit_is_refused():
    x, y = clusters(9, seed=1)
    with pytest.raises(ValueError, match="test set has class 3, the training set only 0…2"):
        linear_probe(x, y, x, y + 1)
    with pytest.raises(ValueError, match="3 of 9 training samples have no label"):
        linear_probe(x, y - 1, x, y)
    with pytest.raises(ValueError, match="at least 1 epoch, got 0"):
        linear_probe(x, y, x, y, epochs=0)
    with pytest.raises(ValueError, match="batch_size is 0"):
        linear_probe(x, y, x, y, batch_size=0)
    with pytest.raises(ValueError, match="at least one pass"):
        linear_probe(x[None][:0], y, x, y)


@pytest.mark.parametrize("l2", [1e-2, 1.0, 30.0])
def test_logistic_fit_is_stationary(l2):
    """At the optimum of mean cross-entropy + l2/(2N)·‖W‖²: (P − Y)ᵀX/N + l2·W/N = 0 and mean(P − Y) = 0."""
    features, labels = clusters(60, seed=4, spread=0.8)
    head = fit_logistic(features, labels, l2, num_classes=3)
    x, w = features.double().numpy(), head.weight.detach().double().numpy()
    error = softmax(x @ w.T + head.bias.detach().double().numpy()) - np.eye(3)[labels]
    np.testing.assert_allclose(error.T @ x / 60 + l2 * w / 60, 0, atol=1e-4)
    np.testing.assert_allclose(error.mean(0), 0, atol=1e-4)
    assert np.abs(w).max() > 0.01


def test_logistic_regression_takes_the_weight_that_validates_best():
    # 40 samples in 5 + 60 dimensions of noise, one of them dead: without L2 the fit memorises
    generator = torch.Generator().manual_seed(0)
    (x, y), (x_test, y_test) = (
        clusters(40, seed=1, spread=0.5, dead=1),
        clusters(300, seed=2, spread=0.5, dead=1),
    )
    x = torch.cat([x, 0.5 * torch.randn(40, 60, generator=generator)], 1)
    x_test = torch.cat([x_test, 0.5 * torch.randn(300, 60, generator=generator)], 1)
    values = (1e-4, 1.0, 30.0, 1e3)
    alone = {l2: logistic_regression(x, y, x_test, y_test, l2_values=(l2,)) for l2 in values}
    chosen = logistic_regression(x, y, x_test, y_test, l2_values=values)
    assert chosen.validation_accuracy == pytest.approx(
        max(r.validation_accuracy for r in alone.values()), abs=0.01
    )
    assert chosen.accuracy == pytest.approx(alone[chosen.l2].accuracy, abs=0.01)
    assert chosen.accuracy > alone[1e-4].accuracy - 0.01
    assert alone[1e-4].accuracy > 0.5  # chance is a third


def test_logistic_regression_needs_two_samples():
    x, y = clusters(1, seed=1)
    with pytest.raises(ValueError, match="at least two training samples"):
        logistic_regression(x, y, x, y)
