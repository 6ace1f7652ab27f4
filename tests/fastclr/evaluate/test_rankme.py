"""RankMe: closed forms, the paper's equations, and the same number on ranks as in one process."""

import math

import pytest
import torch
from support.ranks import run_ranks

from fastclr.evaluate.rankme import MAX_IMAGES, batch_rank, effective_rank


@pytest.mark.parametrize(("rows", "columns"), [(7, 7), (5, 40), (40, 5)])
def test_closed_forms(rows, columns):
    rank = min(rows, columns)
    orthogonal = torch.linalg.qr(torch.randn(max(rows, columns), rank))[0]
    assert effective_rank(orthogonal if rows > columns else orthogonal.T) == pytest.approx(rank, rel=1e-4)
    line = torch.randn(rows, 1) @ torch.randn(1, columns)
    assert effective_rank(line) == pytest.approx(1, abs=1e-3)
    assert effective_rank(torch.zeros(rows, columns)) == pytest.approx(1, abs=1e-3)


def test_the_equations_of_the_paper():
    features = torch.randn(60, 33) * torch.linspace(0.01, 3, 33)
    sigma = torch.linalg.svdvals(features.double())
    p = sigma / sigma.sum() + 1e-7
    assert effective_rank(features) == pytest.approx(torch.exp(-(p * p.log()).sum()).item(), rel=1e-6)


def test_features_that_are_not_finite():
    """A run whose loss is not finite is stopped with its own error."""
    assert math.isnan(effective_rank(torch.full((4, 3), float("nan"))))


def test_a_batch_is_its_first_images_in_view_0():
    h = torch.randn(2 * 600, 20)
    assert batch_rank(h) == effective_rank(h[:MAX_IMAGES])
    h[600:] = 0
    assert batch_rank(h) == effective_rank(h[:MAX_IMAGES])


def worker(rank: int, world_size: int, h: torch.Tensor) -> float:
    import torch.distributed as dist

    own = h.unflatten(0, (2, world_size, -1))[:, rank].flatten(0, 1)
    return batch_rank(own, dist.group.WORLD)


def test_ranks_have_the_number_of_one_process():
    h = torch.randn(2 * 24, 10)
    assert run_ranks(worker, 2, h) == 2 * [pytest.approx(batch_rank(h), rel=1e-9)]
