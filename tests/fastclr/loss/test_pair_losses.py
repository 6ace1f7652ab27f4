"""NT-Logistic and margin triplet against loops over anchors and negatives."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fastclr.loss import margin_triplet, nt_logistic


def log_sigmoid(x: Tensor) -> Tensor:
    return -torch.log(1 + torch.exp(-x))


def loop(
    z: Tensor,
    semi_hard: bool,
    positive_term: Callable[[Tensor], Tensor],
    negative_term: Callable[..., Tensor],
) -> Tensor:
    """Mean over anchors of: positive term, plus the mean of the terms of the chosen negatives."""
    n = len(z) // 2
    u = [row / row.norm() for row in z]
    losses = []
    for i in range(2 * n):
        positive = torch.dot(u[i], u[(i + n) % (2 * n)])
        negatives = [torch.dot(u[i], u[k]) for k in range(2 * n) if k not in (i, (i + n) % (2 * n))]
        if semi_hard:
            farther = [s for s in negatives if s < positive]
            negatives = [max(farther)] if farther else []
        terms = [negative_term(s, positive) for s in negatives]
        loss = positive_term(positive)
        losses.append(loss + torch.stack(terms).mean() if terms else loss)
    return torch.stack(losses).mean()


def logistic_loop(z: Tensor, semi_hard: bool) -> Tensor:
    return loop(z, semi_hard, lambda p: -log_sigmoid(p / 0.3), lambda s, p: -log_sigmoid(-s / 0.3))


def triplet_loop(z: Tensor, semi_hard: bool) -> Tensor:
    return loop(z, semi_hard, lambda p: 0 * p, lambda s, p: (s - p + 0.4).clamp_min(0))


LOSSES = {
    "logistic": (lambda z, semi_hard: nt_logistic(z, 0.3, semi_hard), logistic_loop),
    "triplet": (lambda z, semi_hard: margin_triplet(z, 0.4, semi_hard), triplet_loop),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("semi_hard", [False, True])
# one pair, without negatives; an odd number; pairs that agree so well that every negative is farther
@pytest.mark.parametrize(("n", "noise"), [(1, 1.0), (7, 1.0), (6, 0.1)])
def test_equals_the_loops(name: str, semi_hard: bool, n: int, noise: float) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(n, 5, generator=generator, dtype=torch.float64)
    z = images.repeat(2, 1) + noise * torch.randn(2 * n, 5, generator=generator, dtype=torch.float64)
    z.requires_grad_()
    ours, oracle = LOSSES[name]
    got, want = ours(z, semi_hard), oracle(z, semi_hard)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(
        torch.autograd.grad(got, z)[0], torch.autograd.grad(want, z)[0], rtol=1e-10, atol=1e-13
    )


def test_mining_makes_a_difference() -> None:
    z = torch.randn(16, 5, generator=torch.Generator().manual_seed(0))
    assert float(nt_logistic(z, 0.3, True)) != pytest.approx(float(nt_logistic(z, 0.3, False)), rel=1e-2)
    assert float(margin_triplet(z, 0.4, True)) != pytest.approx(
        float(margin_triplet(z, 0.4, False)), rel=1e-2
    )


def test_closed_forms() -> None:
    n = 4
    orthogonal = torch.eye(n, dtype=torch.float64).repeat(2, 1)
    # positives 1, negatives 0: −log σ(1/τ) − log σ(0); and a margin of 1 is just kept
    for semi_hard in (False, True):
        want = math.log1p(math.exp(-1 / 0.5)) + math.log(2)
        assert float(nt_logistic(orthogonal, 0.5, semi_hard)) == pytest.approx(want, rel=1e-12)
        assert float(margin_triplet(orthogonal, 1.0, semi_hard)) == pytest.approx(0.0, abs=1e-12)
        assert float(margin_triplet(orthogonal, 1.5, semi_hard)) == pytest.approx(0.5, rel=1e-12)

    # all alike: no negative is farther than the positive, so mining leaves none
    alike = torch.tensor([[1.0, 0.0]], dtype=torch.float64).repeat(2 * n, 1)
    assert float(margin_triplet(alike, 0.7)) == pytest.approx(0.7)
    assert float(margin_triplet(alike, 0.7, True)) == 0.0
    assert float(nt_logistic(alike, 0.5, True)) == pytest.approx(math.log1p(math.exp(-2)))
    # −log σ(21) − log σ(−21), of which torch's softplus would drop the part behind the comma
    assert float(nt_logistic(alike, 1 / 21)) == pytest.approx(21 + 2 * math.log1p(math.exp(-21)), rel=1e-13)


def test_half_precision_is_computed_in_float32() -> None:
    z = torch.randn(16, 8, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    for loss in (nt_logistic, margin_triplet):
        with torch.autocast("cpu", torch.bfloat16):
            got = loss(z, 0.5)
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, loss(z.double(), 0.5).float(), rtol=1e-5, atol=1e-6)


def test_bad_settings() -> None:
    z = torch.ones(4, 4)
    with pytest.raises(ValueError, match="temperature is -1"):
        nt_logistic(z, -1)
    with pytest.raises(ValueError, match="margin is 2; it must be above 0 and below 2"):
        margin_triplet(z, 2)
    with pytest.raises(ValueError, match=r"\[3, 4\]"):
        margin_triplet(torch.ones(3, 4), 1.0)
