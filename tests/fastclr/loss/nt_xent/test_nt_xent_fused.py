"""The fused NT-Xent against a float64 oracle: in Triton's interpreter here, at real sizes on a GPU."""

import importlib.util
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from support.ranks import run_ranks
from support.triton_support import interpreted, on_gpu, start_interpreter
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from fastclr.loss import nt_xent
from fastclr.loss.nt_xent.reference import nt_xent_reference

# asked for without importing it, which a process must only do once it is to be an interpreter or is not
pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton")

SHAPES = [
    (3, 20),  # fewer rows than a tile; a width that is padded
    (3, 1),  # width 1, of which normalisation leaves a sign and no gradient
    (64, 64),  # one block exactly
    (65, 20),  # two rows more than a block; positives off the tiles' grid
    (128, 16),  # two blocks, at half the circle's distance of each other: one visits the other
    (150, 40),  # three blocks: an odd circle
    (200, 128),  # four blocks, the last one ragged
]

TOLERANCE = 2e-3
"""Relative, of the gradient: float16 z and weights."""


def pairs(n: int, width: int, noise: float = 0.5, seed: int = 0) -> Tensor:
    """[2n, width] of pairs that lie `noise` apart, un-normalised and of uneven length."""
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn(n, width, generator=generator)
    second = first + noise * torch.randn(n, width, generator=generator)
    return torch.cat([first, second]) * torch.rand(2 * n, 1, generator=generator).add(0.1)


@contextmanager
def poisoned() -> Iterator[None]:
    """Unwritten memory is NaN."""
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.zeros(1).new_empty(100).isnan().all()
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def differentiate(function: Callable[[Tensor], Tensor], z: Tensor) -> tuple[Tensor, Tensor]:
    z = z.clone().requires_grad_()
    loss = function(z)
    loss.backward()
    assert z.grad is not None
    return loss.detach(), z.grad


def run_fused(z: Tensor, temperature: float, changes: dict[str, Any] | None = None) -> tuple[Tensor, Tensor]:
    """Loss and gradient, with other values for some names of fused.py."""
    from fastclr.loss.nt_xent import fused

    with poisoned(), mock.patch.multiple(fused, **changes) if changes else nullcontext():
        return differentiate(lambda z: fused.nt_xent_fused(z, temperature), z)


def oracle(z: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    return differentiate(lambda z: nt_xent_reference(z, temperature), z.double())


def error(gradient: Tensor, truth: Tensor) -> float:
    """Relative, by norm; NaN never passes a comparison."""
    return ((gradient.double() - truth).norm() / truth.norm()).item()


@pytest.mark.parametrize(("n", "width"), SHAPES)
def test_loss_and_gradient_are_the_oracles(n: int, width: int) -> None:
    z = pairs(n, width)
    loss, gradient = interpreted(run_fused, z, 0.1)
    true_loss, true_gradient = oracle(z, 0.1)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(true_loss.item(), rel=1e-3)  # few negatives average little out
    if width > 1:
        assert error(gradient, true_gradient) < TOLERANCE
    else:
        assert gradient.abs().max() < 1e-5


def test_one_pair_has_no_negatives() -> None:
    loss, gradient = interpreted(run_fused, pairs(1, 20), 0.1)
    assert loss.item() == 0.0
    assert gradient.count_nonzero() == 0


@pytest.mark.parametrize("n", [2, 70])
def test_rows_that_are_all_alike(n: int) -> None:
    """Every similarity is 1: log(2n − 1), and nowhere to go.  Of 64 equal entries, 1/8 each, float16 rounds none."""
    loss, gradient = interpreted(run_fused, torch.ones(2 * n, 64), 0.5)
    assert loss.item() == pytest.approx(math.log(2 * n - 1), rel=1e-5)
    assert gradient.abs().max() < 1e-5


@pytest.mark.parametrize("temperature", [0.03, 0.05, 0.5, 1.0])
def test_temperatures(temperature: float) -> None:
    """0.03 is the lowest that float32 sums with a fixed maximum allow: exp(−2/τ) is 1e-29."""
    z = pairs(70, 32, noise=1.5)
    z[1] = -z[0]  # the smallest similarity there is
    loss, gradient = interpreted(run_fused, z, temperature)
    true_loss, true_gradient = oracle(z, temperature)
    assert loss.item() == pytest.approx(true_loss.item(), rel=1e-3)
    assert error(gradient, true_gradient) < TOLERANCE * max(1.0, 0.1 / temperature)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 2e-3), (torch.bfloat16, 8e-3)])
def test_half_precision_input(dtype: torch.dtype, tolerance: float) -> None:
    """The gradient comes back in z's type; the interpreter truncates to bfloat16, hence its tolerance."""
    z = pairs(65, 32).to(dtype)
    loss, gradient = interpreted(run_fused, z, 0.2)
    true_loss, true_gradient = oracle(z, 0.2)
    assert loss.dtype == torch.float32
    assert gradient.dtype == dtype
    assert loss.item() == pytest.approx(true_loss.item(), rel=1e-4)
    assert error(gradient, true_gradient) < tolerance


def unfused(z: Tensor, temperature: float, dtype: torch.dtype) -> Tensor:
    """What users write: normalised rows and their similarities in half precision."""
    z = F.normalize(z).to(dtype)
    similarities = (z @ z.T).float() / temperature
    similarities.fill_diagonal_(float("-inf"))
    return F.cross_entropy(similarities, (torch.arange(len(z)) + len(z) // 2) % len(z))


@pytest.mark.parametrize("noise", [1.0, 0.05])
def test_not_less_exact_than_the_unfused_form(noise: float) -> None:
    """In the same precision, early in training and late, when positives are at cosine 0.999."""
    z = pairs(128, 64, noise)
    _, truth = oracle(z, 0.1)
    _, gradient = interpreted(run_fused, z, 0.1)
    _, plain = differentiate(lambda z: unfused(z, 0.1, torch.float16), z)
    assert error(gradient, truth) < 1.1 * error(plain, truth) + 1e-5


@pytest.mark.parametrize("splits", [1, 2, 5, 16])
@pytest.mark.parametrize("capability", [(8, 0), (9, 0)])
def test_tiles_and_splits_do_not_matter(splits: int, capability: tuple[int, int]) -> None:
    """16 are more than there are tiles: some programs have nothing to do."""
    z = pairs(100, 24)
    _, truth = oracle(z, 0.1)
    _, gradient = interpreted(run_with, z, splits, capability)
    assert error(gradient, truth) < TOLERANCE


def run_with(z: Tensor, splits: int, capability: tuple[int, int]) -> tuple[Tensor, Tensor]:
    changes = {"choose_splits": lambda *_: splits, "gpu_facts": lambda device: (capability, 1)}
    return run_fused(z, 0.1, changes)


def test_gradient_of_a_multiple() -> None:
    """grad_output is multiplied on the device."""
    gradient, scaled, strided = interpreted(run_multiples, pairs(10, 20))
    torch.testing.assert_close(scaled, -3 * gradient)
    torch.testing.assert_close(strided, gradient)


def run_multiples(z: Tensor) -> tuple[Tensor, ...]:
    from fastclr.loss.nt_xent.fused import nt_xent_fused

    _, gradient = differentiate(lambda z: nt_xent_fused(z, 0.1), z)
    _, scaled = differentiate(lambda z: -3 * nt_xent_fused(z, 0.1), z)
    # rows that don't follow each other in memory
    _, strided = differentiate(lambda z: nt_xent_fused(z.T.contiguous().T, 0.1), z)
    return gradient, scaled, strided


def test_a_row_opposite_to_all_others() -> None:
    """Its sum is exp(−2/τ), of whose inverse no float16 weight may be made: neither with itself nor with the rows of
    zeros behind the last (of 400, in a tile that holds no positive of the first block)."""
    z = 10 + pairs(200, 24)
    z[0] = -z[0]
    loss, gradient = interpreted(run_fused, z, 0.1)
    true_loss, true_gradient = oracle(z, 0.1)
    assert loss.item() == pytest.approx(true_loss.item(), rel=1e-4)
    assert error(gradient, true_gradient) < 5 * TOLERANCE


def test_zero_rows_stay_finite() -> None:
    z = pairs(5, 20)
    z[2] = 0
    loss, gradient = interpreted(run_fused, z, 0.1)
    true_loss, true_gradient = oracle(z, 0.1)
    assert loss.item() == pytest.approx(true_loss.item(), rel=1e-4)
    assert error(gradient, true_gradient) < TOLERANCE


@pytest.mark.parametrize("norm", [4.6e-7, 9.3e-7, 1.1e-6])
def test_rows_as_short_as_the_smallest_norm(norm: float) -> None:
    """Below it z is h/1e-6, which has a gradient along h as well."""
    z = pairs(5, 20)
    z[2] *= norm / z[2].norm()
    _, gradient = interpreted(run_fused, z, 0.1)
    _, true_gradient = oracle(z, 0.1)
    assert error(gradient[2], true_gradient[2]) < TOLERANCE


def test_not_a_number_reaches_the_loss() -> None:
    z = pairs(70, 20)
    z[3, 4] = float("nan")
    loss, _ = interpreted(run_fused, z, 0.1)
    assert loss.isnan()


def test_operators_and_the_compiler_agree() -> None:
    interpreted(check_operators, pairs(3, 20))


def check_operators(z: Tensor) -> None:
    from fastclr.loss.nt_xent import fused

    z.requires_grad_()
    forward, backward = torch.ops.fastclr.nt_xent.default, torch.ops.fastclr.nt_xent_backward.default
    torch.library.opcheck(forward, (z, 0.1, ""))
    saved = [t.detach() for t in forward(z, 0.1, "")[1:]]
    torch.library.opcheck(backward, (torch.ones(()), *saved, 0.1, "", 20, torch.float32))

    compiled = torch.compile(lambda z: fused.nt_xent_fused(2 * z, 0.1), backend="aot_eager", fullgraph=True)
    for got, want in zip(
        differentiate(compiled, z.detach()),
        differentiate(lambda z: fused.nt_xent_fused(2 * z, 0.1), z.detach()),
        strict=True,
    ):
        assert torch.equal(got, want)


@pytest.mark.slow
def test_ranks_have_the_gradient_of_one_process() -> None:
    """The sum of the ranks' losses, each a mean over its rows.  Slots of 130 rows begin within tiles, and rank 1's
    has others on both sides."""
    world_size, n = 3, 65
    z = [pairs(n, 20, seed=rank) for rank in range(world_size)]
    whole = torch.cat([t[:n] for t in z] + [t[n:] for t in z])
    true_loss, true_gradient = oracle(whole, 0.1)
    results = run_ranks(rank_worker, world_size, z)
    assert sum(loss.item() for loss, _ in results) / world_size == pytest.approx(true_loss.item(), rel=1e-4)
    for rank, (_, gradient) in enumerate(results):
        own = true_gradient.unflatten(0, (2, world_size, n))[:, rank].flatten(0, 1)
        assert error(gradient / world_size, own) < TOLERANCE


def rank_worker(rank: int, world_size: int, z: list[Tensor]) -> tuple[Tensor, Tensor]:
    start_interpreter()
    from fastclr.loss.nt_xent.fused import nt_xent_fused

    with poisoned():
        return differentiate(lambda z: nt_xent_fused(z, 0.1, dist.group.WORLD), z[rank])


@pytest.mark.parametrize(
    ("z", "temperature", "needed"),
    [
        (torch.ones(4, 8, dtype=torch.float64), 0.1, "float32"),
        (torch.ones(4, 513), 0.1, "512"),
        (torch.ones(4, 8), 0.02, "0.03"),
        (torch.ones(5, 8), 0.1, "2n"),
        (torch.ones(4, 8), 0.1, "CUDA"),
    ],
)
def test_unsupported_parameters_are_refused(z: Tensor, temperature: float, needed: str) -> None:
    from fastclr.loss.nt_xent.fused import nt_xent_fused

    with pytest.raises(ValueError, match=needed):
        nt_xent_fused(z, temperature)


def test_an_older_gpu_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    with FakeTensorMode():  # a CUDA tensor without CUDA
        z = torch.ones(4, 8, device="cuda")
        with pytest.raises(ValueError, match="Tesla T4"):
            nt_xent(z, 0.1, impl="fused")


@on_gpu
@pytest.mark.parametrize(
    ("n", "width", "temperature"),
    [
        (1, 128, 0.1),
        (65, 20, 0.1),
        (1000, 64, 0.5),
        (4096, 128, 0.1),
        (4100, 128, 0.1),  # ragged
        (1024, 256, 0.1),
        (1024, 512, 0.1),
        (512, 300, 1.0),
        (2048, 128, 0.03),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gpu_loss_and_gradient(n: int, width: int, temperature: float, dtype: torch.dtype) -> None:
    z = pairs(n, width, noise=1.5).to("cuda", dtype)
    loss, gradient = run_fused(z, temperature)
    again = run_fused(z, temperature)
    assert torch.equal(loss, again[0])
    assert torch.equal(gradient, again[1])
    true_loss, true_gradient = oracle(z, temperature)
    assert loss.item() == pytest.approx(true_loss.item(), rel=1e-3, abs=1e-6)
    if n > 1:
        tolerance = 8e-3 if dtype == torch.bfloat16 else TOLERANCE
        assert error(gradient, true_gradient) < tolerance * max(1.0, 0.1 / temperature)


@on_gpu
def test_gpu_largest_batch() -> None:
    """M = 65536, against float32 in blocks of rows; the memory is that of rows, not of a matrix of 17 GB."""
    z = pairs(32768, 128, noise=1.0).cuda()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    loss, gradient = differentiate(lambda z: nt_xent(z, 0.1, impl="fused"), z)
    assert torch.cuda.max_memory_allocated() - before < 400e6
    true_loss, true_gradient = differentiate(lambda z: nt_xent(z, 0.1, impl="reference"), z)
    assert loss.item() == pytest.approx(true_loss.item(), rel=1e-4)
    assert error(gradient, true_gradient.double()) < TOLERANCE


@on_gpu
def test_gpu_graph_and_compiler() -> None:
    """A captured forward and backward, replayed on other rows; and Inductor's."""

    def function(z: Tensor) -> Tensor:
        return nt_xent(z, 0.1, impl="fused")

    static = pairs(1024, 128).cuda().requires_grad_()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        torch.autograd.grad(function(static), static)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = function(static)
        (gradient,) = torch.autograd.grad(loss, static)
    for seed in (1, 2):
        z = pairs(1024, 128, seed=seed).cuda()
        with torch.no_grad():
            static.copy_(z)
        graph.replay()
        want = differentiate(function, z)
        assert torch.equal(loss, want[0])
        assert torch.equal(gradient, want[1])
        compiled = differentiate(torch.compile(function), z)
        assert torch.equal(compiled[0], want[0])
        assert torch.equal(compiled[1], want[1])
