import math

import pytest
import torch

from fastclr.loss import contrastive_metrics
from fastclr.loss.nt_xent import reference


def test_closed_forms() -> None:
    n = 5
    perfect = contrastive_metrics(torch.eye(n).repeat(2, 1), temperature=0.01)
    assert float(perfect.accuracy) == 1.0
    assert float(perfect.entropy) == pytest.approx(0.0, abs=1e-6)

    collapsed = contrastive_metrics(torch.ones(2 * n, 8), temperature=0.1)  # a draw is no hit
    assert float(collapsed.accuracy) == pytest.approx(1 / n)
    assert float(collapsed.entropy) == pytest.approx(math.log(n), rel=1e-6)

    # orthogonal images: one logit of 1/τ, n − 1 of 0
    temperature = 0.5
    p = math.exp(1 / temperature) / (math.exp(1 / temperature) + n - 1)
    want = -p * math.log(p) - (1 - p) * math.log((1 - p) / (n - 1))
    metrics = contrastive_metrics(torch.eye(n, dtype=torch.float64).repeat(2, 1), temperature)
    assert float(metrics.entropy) == pytest.approx(want, rel=1e-12)


def test_accuracy_counts_images_whose_own_view_is_nearest() -> None:
    # in view 1, images 0 and 1 have changed places; 2 and 3 are where they were
    z = torch.cat([torch.eye(4), torch.eye(4)[[1, 0, 2, 3]]])
    assert float(contrastive_metrics(z, 0.1).accuracy) == 0.5


@pytest.mark.parametrize("block", [1, 30])  # a row at a time; 4 of 7
def test_blocks_of_rows_do_not_show(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(7, 3, dtype=torch.float64, generator=generator)
    z = images.repeat(2, 1) + torch.randn(14, 3, dtype=torch.float64, generator=generator)
    want = contrastive_metrics(z, 0.3)
    assert 0.1 < float(want.accuracy) < 0.9
    monkeypatch.setattr(reference, "BLOCK", block)
    torch.testing.assert_close(tuple(contrastive_metrics(z, 0.3)), tuple(want))


def test_no_gradient_and_half_precision() -> None:
    z = torch.randn(8, 4, generator=torch.Generator().manual_seed(0)).half().requires_grad_()
    metrics = contrastive_metrics(z, 0.1)
    assert not metrics.accuracy.requires_grad
    assert not metrics.entropy.requires_grad
    torch.testing.assert_close(tuple(metrics), tuple(contrastive_metrics(z.float(), 0.1)))
