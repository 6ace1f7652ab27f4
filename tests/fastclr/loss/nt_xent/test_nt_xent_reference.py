"""NT-Xent on one rank: closed forms, invariants, and the paper written out as loops."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from fastclr.loss import nt_xent
from fastclr.loss.nt_xent import reference


def paper(z: Tensor, temperature: float) -> Tensor:
    """Algorithm 1 of arXiv 2002.05709, pair by pair; rows k and k + n are the two views of image k."""
    n = len(z) // 2
    total = z.new_zeros(())
    for i in range(2 * n):
        j = (i + n) % (2 * n)
        similarity = [torch.dot(z[i], z[k]) / (z[i].norm() * z[k].norm()) / temperature for k in range(2 * n)]
        others = torch.stack([similarity[k].exp() for k in range(2 * n) if k != i])
        total = total - torch.log(similarity[j].exp() / others.sum())
    return total / (2 * n)


def loss_and_gradient(z: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    z = z.detach().requires_grad_()
    loss = nt_xent(z, temperature, impl="reference")
    (gradient,) = torch.autograd.grad(loss, z)
    return loss.detach(), gradient


def rows(n: int, width: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(2 * n, width, dtype=dtype, generator=torch.Generator().manual_seed(seed))


# one pair; odd numbers of pairs; a width of one, where all similarities are ±1; a width above the fused form's
@pytest.mark.parametrize(("n", "width"), [(1, 4), (2, 1), (3, 5), (7, 16), (4, 600)])
@pytest.mark.parametrize("temperature", [0.1, 0.5, 1.0])
def test_equals_the_paper(n: int, width: int, temperature: float) -> None:
    z = rows(n, width)
    loss, gradient = loss_and_gradient(z, temperature)
    z.requires_grad_()
    want = paper(z, temperature)
    (want_gradient,) = torch.autograd.grad(want, z)
    torch.testing.assert_close(loss, want.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient, want_gradient, rtol=1e-10, atol=1e-12)


def test_equals_its_two_line_definition() -> None:
    z, n, temperature = rows(9, 8), 9, 0.2
    s = F.normalize(z) @ F.normalize(z).T / temperature
    s.fill_diagonal_(-math.inf)
    want = F.cross_entropy(s, (torch.arange(2 * n) + n) % (2 * n))
    torch.testing.assert_close(nt_xent(z, temperature), want)


@pytest.mark.parametrize("n", [1, 2, 5, 64])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_identical_rows_give_log_of_the_others(n: int, dtype: torch.dtype) -> None:
    z = torch.full((2 * n, 16), 3.0, dtype=dtype)
    loss, gradient = loss_and_gradient(z, 0.1)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    assert float(loss) == pytest.approx(math.log(2 * n - 1), abs=tolerance)
    assert float(gradient.abs().max()) < tolerance  # nothing to gain in any direction


def test_orthogonal_images_closed_form() -> None:
    # s is 1/τ for the positive and 0 for the 2n − 2 negatives
    n, temperature = 6, 0.5
    z = 5 * torch.eye(n, dtype=torch.float64).repeat(2, 1)
    want = math.log(math.exp(1 / temperature) + 2 * n - 2) - 1 / temperature
    assert float(nt_xent(z, temperature)) == pytest.approx(want, rel=1e-12)


def test_invariances() -> None:
    z = rows(6, 8)
    loss, gradient = loss_and_gradient(z, 0.3)

    swapped_loss, swapped_gradient = loss_and_gradient(z.roll(6, 0), 0.3)
    torch.testing.assert_close(swapped_loss, loss)
    torch.testing.assert_close(swapped_gradient, gradient.roll(6, 0))

    order = torch.tensor([3, 0, 5, 1, 4, 2])
    both = torch.cat([order, order + 6])
    permuted_loss, permuted_gradient = loss_and_gradient(z[both], 0.3)
    torch.testing.assert_close(permuted_loss, loss)
    torch.testing.assert_close(permuted_gradient, gradient[both])

    # the length of a row does not matter, and the gradient has no part along it
    lengths = torch.linspace(0.1, 10, 12, dtype=torch.float64)[:, None]
    scaled_loss, scaled_gradient = loss_and_gradient(z * lengths, 0.3)
    torch.testing.assert_close(scaled_loss, loss)
    torch.testing.assert_close(scaled_gradient, gradient / lengths)
    torch.testing.assert_close((gradient * z).sum(1), torch.zeros(12, dtype=torch.float64))


def test_gradcheck() -> None:
    z = rows(4, 6).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: nt_xent(z, 0.5), z)
    assert torch.autograd.gradcheck(lambda z: -3 * nt_xent(z, 0.07) ** 2, z)  # an outer gradient that isn't 1


@pytest.mark.parametrize("block", [1, 50, 84, 1 << 24])  # a row at a time; 3 rows; 6 of 14; all
def test_blocks_of_rows_do_not_show(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    z = rows(7, 5)
    loss, gradient = loss_and_gradient(z, 0.2)
    monkeypatch.setattr(reference, "BLOCK", block)
    in_blocks, in_blocks_gradient = loss_and_gradient(z, 0.2)
    torch.testing.assert_close(in_blocks, loss, rtol=1e-13, atol=0)
    torch.testing.assert_close(in_blocks_gradient, gradient, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("temperature", [0.01, 0.1])  # at 0.01 similarities reach 100, beyond exp in float16
def test_lower_precisions_follow_float64(dtype: torch.dtype, temperature: float) -> None:
    z = rows(32, 24).to(dtype)
    z[32:40] = z[:8]  # some pairs agree entirely, as they do late in training
    loss, gradient = loss_and_gradient(z, temperature)
    want, want_gradient = loss_and_gradient(z.double(), temperature)
    assert loss.dtype == torch.float32
    assert gradient.dtype == dtype
    # computed in float32; only the gradient is rounded to z's type at the end
    assert float(loss) == pytest.approx(float(want), rel=1e-5)
    error = (gradient.double() - want_gradient).norm() / want_gradient.norm()
    assert float(error) < {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 4e-3}[dtype]


def test_autocast_does_not_lower_the_precision() -> None:
    z = rows(16, 32, torch.float32)
    want, want_gradient = loss_and_gradient(z, 0.1)
    with torch.autocast("cpu", torch.bfloat16):
        loss, gradient = loss_and_gradient(z, 0.1)
    assert torch.equal(loss, want)
    assert torch.equal(gradient, want_gradient)


def test_a_row_of_zeros_stays_finite() -> None:
    z = rows(4, 8, torch.float32)
    z[2] = 0
    loss, gradient = loss_and_gradient(z, 0.1)
    assert torch.isfinite(loss)
    assert torch.isfinite(gradient).all()


def test_loss_falls_when_followed() -> None:
    """Gradient descent on z itself reaches what is best: positives together, images far apart."""
    z = rows(4, 8).requires_grad_()
    for _ in range(500):
        (gradient,) = torch.autograd.grad(nt_xent(z, 0.5), z)
        z.data -= 5 * gradient
    similarity = F.normalize(z.detach()) @ F.normalize(z.detach()).T
    # n = 4 directions in 8 dimensions, as far apart as they get: a simplex, cosine −1/3
    images = torch.arange(8) % 4
    same = images[:, None] == images
    torch.testing.assert_close(similarity[same], torch.ones(16, dtype=torch.float64), rtol=0, atol=1e-3)
    torch.testing.assert_close(
        similarity[~same], torch.full((48,), -1 / 3, dtype=torch.float64), rtol=0, atol=1e-2
    )


@pytest.mark.parametrize(
    ("z", "message"),
    [
        (torch.zeros(3, 4), r"\[3, 4\]; it must be floating point \[2n, D\]"),
        (torch.zeros(0, 4), r"\[0, 4\]"),
        (torch.zeros(2, 2, 4), r"\[2, 2, 4\]"),
        (torch.zeros(4, 4, dtype=torch.int64), "torch.int64"),
    ],
)
def test_bad_rows(z: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        nt_xent(z, 0.1)


def test_bad_settings() -> None:
    z = torch.ones(4, 4)
    with pytest.raises(ValueError, match="temperature is 0"):
        nt_xent(z, 0)
    with pytest.raises(ValueError, match="impl 'triton' is unknown; there are auto, reference, fused"):
        nt_xent(z, 0.1, impl="triton")
    with pytest.raises(ValueError, match="z is on cpu, and the kernels need a CUDA device"):
        nt_xent(z, 0.1, impl="fused")


@pytest.mark.parametrize(
    ("shape", "dtype", "temperature", "reason"),
    [
        ((4, 513), torch.float32, 0.1, "z has width 513, and the kernels take 512 at most"),
        ((4, 128), torch.float64, 0.1, "z is float64"),
        ((4, 128), torch.float16, 0.02, "temperature is 0.02, and the kernels take 0.03 at least"),
    ],
)
def test_fused_names_the_limit_that_is_passed(
    shape: tuple[int, int], dtype: torch.dtype, temperature: float, reason: str
) -> None:
    with FakeTensorMode():  # a CUDA tensor without CUDA
        z = torch.empty(shape, dtype=dtype, device="cuda")
        with pytest.raises(ValueError, match=f"impl='fused' can't run here: {reason}"):
            nt_xent(z, temperature, impl="fused")


def test_a_second_derivative_is_refused() -> None:
    """It would be that of the normalisation alone, and silently wrong."""
    z = torch.randn(6, 4, requires_grad=True)
    with pytest.raises(RuntimeError, match="no second derivative: leave out create_graph"):
        torch.autograd.grad(nt_xent(z, 0.5, impl="reference"), z, create_graph=True)
