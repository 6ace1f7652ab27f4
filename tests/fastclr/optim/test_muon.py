"""Muon against its equations, with the orthogonal factor from a singular value decomposition."""

import copy

import pytest
import torch
from torch import Tensor, nn

from fastclr.optim import LARS, Muon
from fastclr.optim.muon import orthogonal


def polynomial(s: Tensor) -> Tensor:
    """Three Newton-Schulz iterations on singular values."""
    for _ in range(3):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return s


# wide, tall, square; a zero matrix stays zero
@pytest.mark.parametrize("shape", [(6, 45), (45, 6), (8, 8)])
def test_orthogonal_keeps_singular_vectors(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    got = orthogonal(matrix)
    torch.testing.assert_close(got, u @ polynomial(s / s.norm()).diag() @ vh, rtol=1e-10, atol=1e-12)
    assert orthogonal(torch.zeros(shape)).abs().max() == 0
    # in bfloat16, which has 8 bits, products of dozens of rounded numbers
    assert (orthogonal(matrix, torch.bfloat16).double() - got).norm() / got.norm() < 0.03


def test_singular_values_of_the_documented_range() -> None:
    s = polynomial(torch.logspace(-1.875, 0, 1000, dtype=torch.float64))  # 1/75 to 1
    assert 0.5 < s.min() < s.max() < 1.21


def model() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 12, 3, bias=False),
        nn.Flatten(),
        nn.Linear(12, 5),
    ]
    return nn.Sequential(*layers).double()


def backward(net: nn.Module, step: int) -> None:
    net.zero_grad()
    x = torch.randn(6, 3, 5, 5, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
    net(x).square().sum().backward()


def test_steps_are_the_equations() -> None:
    net, lr, momentum = model(), 5.0, 0.8
    optimizer = Muon(net.parameters(), lr, momentum, weight_decay=1e-4, trust_coefficient=2e-3)
    weight = net[2].weight.detach().clone().flatten(1)
    velocity = torch.zeros_like(weight)
    for step in range(3):
        backward(net, step)
        gradient = net[2].weight.grad.flatten(1)
        velocity = momentum * velocity + gradient
        u, s, vh = torch.linalg.svd(gradient + momentum * velocity, full_matrices=False)
        direction = u @ polynomial(s / s.norm()).diag() @ vh
        weight = 12**0.5 * weight / weight.norm() - 5.0 * 2e-3 / (1 - 0.8) * direction
        optimizer.step()
        torch.testing.assert_close(net[2].weight.detach().flatten(1), weight, rtol=1e-9, atol=1e-12)


def test_the_rest_is_lars() -> None:
    ours, theirs = model(), model()
    optimizers = (
        Muon(ours.parameters(), 1.0, weight_decay=1e-3),
        LARS([p for p in theirs.parameters() if p is not theirs[2].weight], 1.0, weight_decay=1e-3),
    )
    for step in range(3):
        for net, optimizer in zip((ours, theirs), optimizers, strict=True):
            backward(net, step)
            optimizer.step()
        with torch.no_grad():
            theirs[2].weight.copy_(ours[2].weight)
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_state_continues() -> None:
    net = model()
    optimizer = Muon(net.parameters(), 1.0)
    backward(net, 0)
    optimizer.step()
    other = copy.deepcopy(net)
    resumed = Muon(other.parameters(), 0.5)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for each, steps in ((net, optimizer), (other, resumed)):
        backward(each, 1)
        steps.step()
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), other.parameters(), strict=True))


def test_one_rate_for_all_groups() -> None:
    """The training loop sets `lr` in every group; a rate of 0 leaves directions as they are."""
    net = model()
    optimizer = Muon(net.parameters(), 1.0)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    before = net[2].weight.detach().clone()
    backward(net, 0)
    optimizer.step()
    torch.testing.assert_close(net[2].weight.detach(), 12**0.5 * before / before.norm(), rtol=1e-12, atol=0)


def test_channels_last_and_float32() -> None:
    plain, last = model().float(), model().float().to(memory_format=torch.channels_last)
    for net in (plain, last):
        optimizer = Muon(net.parameters(), 1.0)
        x = torch.randn(6, 3, 5, 5, generator=torch.Generator().manual_seed(0))
        net(x).square().sum().backward()
        optimizer.step()
    assert last[2].weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(last[2].weight, plain[2].weight, rtol=1e-2, atol=1e-4)
