"""LARS against the authors' loop, written out tensor by tensor in float64."""

import copy
import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fastclr.optim import LARS

# a matrix, a bias, a convolution, a scalar, a tensor that starts at zero, one whose gradient is zero
SHAPES = [(3, 5), (7,), (4, 3, 3, 3), (), (2, 2), (2, 6)]
ZERO_WEIGHT, ZERO_GRADIENT = 4, 5


def trust_ratio(weight_norm: float, step_norm: float, eta: float) -> float:
    return eta * weight_norm / step_norm if weight_norm > 0 and step_norm > 0 else 1.0


def oracle(
    weights: list[Tensor],
    gradients: list[list[Tensor]],
    rates: list[float],
    form: str,
    decay: float,
    eta: float,
) -> list[Tensor]:
    """The loop of the authors' lars_optimizer.py (classic and popular momentum), and the ports' loop."""
    weights = [w.clone() for w in weights]
    buffers = [torch.zeros_like(w) for w in weights]
    for grads, lr in zip(gradients, rates, strict=True):
        for i, g in enumerate(grads):
            w, v, excluded = weights[i], buffers[i], weights[i].ndim < 2
            decayed = g if excluded else g + decay * w
            if form == "authors":
                trust = 1.0 if excluded else trust_ratio(float(w.norm()), float(decayed.norm()), eta)
                buffers[i] = 0.9 * v + lr * trust * decayed
                weights[i] = w - buffers[i]
            elif form == "popular":
                buffers[i] = 0.9 * v + decayed
                trust = 1.0 if excluded else trust_ratio(float(w.norm()), float(buffers[i].norm()), eta)
                weights[i] = w - lr * trust * buffers[i]
            else:
                trust = 1.0
                if decay and not excluded and w.norm() > 0 and g.norm() > 0:
                    trust = eta * float(w.norm()) / (float(g.norm()) + decay * float(w.norm()))
                buffers[i] = 0.9 * v + trust * decayed
                weights[i] = w - lr * buffers[i]
    return weights


def problem(dtype: torch.dtype = torch.float64) -> tuple[list[Tensor], list[list[Tensor]], list[float]]:
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(shape, generator=generator, dtype=dtype) for shape in SHAPES]
    weights[ZERO_WEIGHT].zero_()
    gradients = [[torch.randn(shape, generator=generator, dtype=dtype) for shape in SHAPES] for _ in range(5)]
    for grads in gradients[:3]:
        grads[ZERO_GRADIENT].zero_()
    return weights, gradients, [0.0, 0.5, 2.0, 4.8, 1.0]


def run(
    weights: list[Tensor],
    gradients: list[list[Tensor]],
    rates: list[float],
    set_rate: Callable[[LARS, float], None] | None = None,
    **settings: Any,
) -> tuple[list[Tensor], LARS]:
    params = [nn.Parameter(w.clone()) for w in weights]
    optimizer = LARS(params, **{"lr": 0.0, **settings})
    for grads, rate in zip(gradients, rates, strict=True):
        for p, g in zip(params, grads, strict=True):
            p.grad = g.clone()
        if set_rate is None:
            optimizer.param_groups[0]["lr"] = rate
        else:
            set_rate(optimizer, rate)
        optimizer.step()
        for p, g in zip(params, grads, strict=True):
            assert torch.equal(p.grad, g)  # not used as scratch space
    return [p.detach() for p in params], optimizer


@pytest.mark.parametrize("form", ["authors", "popular", "port"])
@pytest.mark.parametrize("decay", [0.0, 1e-2])
def test_equals_the_authors_loop(form: str, decay: float) -> None:
    weights, gradients, rates = problem()
    want = oracle(weights, gradients, rates, form, decay, 1e-3)
    got, _ = run(weights, gradients, rates, form=form, weight_decay=decay)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("decay", [0.0, 1e-2])
@pytest.mark.parametrize(
    ("module", "name", "eta"),
    [("timm.optim.lars", "Lars", "trust_coeff"), ("lightly.utils.lars", "LARS", "trust_coefficient")],
)
def test_port_equals_the_ports(module: str, name: str, eta: str, decay: float) -> None:
    weights, gradients, rates = problem()
    # gradients of a usual length, beside which the ports' 1e-8 is nothing; no vectors, of which they know nothing
    chosen = [i for i, w in enumerate(weights) if w.ndim >= 2 and i not in (ZERO_WEIGHT, ZERO_GRADIENT)]
    weights, gradients = [weights[i] for i in chosen], [[step[i] for i in chosen] for step in gradients]
    theirs = [nn.Parameter(w.clone()) for w in weights]
    settings = {"momentum": 0.9, "weight_decay": decay, eta: 1e-3}
    optimizer = getattr(pytest.importorskip(module), name)(theirs, lr=0.0, **settings)
    for step, rate in zip(gradients, rates, strict=True):
        for p, g in zip(theirs, step, strict=True):
            p.grad = g.clone()
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
    ours, _ = run(weights, gradients, rates, form="port", weight_decay=decay)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b.detach(), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("decay", [0.0, 1e-2])
@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize(
    ("module", "name", "eta"),
    [("timm.optim.lars", "Lars", "trust_coeff"), ("lightly.utils.lars", "LARS", "trust_coefficient")],
)
def test_port_equals_the_ports_in_a_whole_network(
    module: str, name: str, eta: str, split: bool, decay: float, require_package: Callable[[str], Any]
) -> None:
    """In one group, which adapts vectors too, or with vectors in a group of their own without decay."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(32, 4)).double()
    for vector in (p for p in network.parameters() if p.ndim < 2):
        nn.init.normal_(vector)
    copies = [nn.Parameter(p.detach().clone()) for p in network.parameters()]
    settings = {"momentum": 0.9, "weight_decay": decay, eta: 1e-3}
    theirs = [nn.Parameter(p.detach().clone()) for p in network.parameters()]
    groups: Any = theirs
    if split:
        groups = [
            {"params": [p for p in theirs if p.ndim >= 2]},
            {"params": [p for p in theirs if p.ndim < 2], "weight_decay": 0.0},
        ]
    port = getattr(require_package(module), name)(groups, lr=0.1, **settings)
    ours = LARS(copies, 0.1, weight_decay=decay, form="port", exclude_vectors=split)
    for _ in range(5):
        network.zero_grad()
        network(torch.randn(6, 3, 4, 4, dtype=torch.float64)).square().sum().backward()
        for a, b, p in zip(copies, theirs, network.parameters(), strict=True):
            assert p.grad is not None
            a.grad, b.grad = p.grad.clone(), p.grad.clone()
        ours.step()
        port.step()
    for a, b in zip(copies, theirs, strict=True):
        torch.testing.assert_close(a.detach(), b.detach(), rtol=1e-7, atol=1e-9)


def test_forms_differ_when_the_rate_changes() -> None:
    weights, gradients, rates = problem()
    results = {
        form: run(weights, gradients, rates, form=form, weight_decay=1e-6)[0][0]
        for form in ("authors", "popular", "port")
    }
    for a, b in itertools.combinations(results.values(), 2):
        assert (a - b).norm() > 1e-4 * a.norm()


def test_a_first_step_has_the_length_eta_times_rate_times_norm() -> None:
    w, g = torch.randn(8, 8, dtype=torch.float64), torch.randn(8, 8, dtype=torch.float64)
    (moved,), _ = run([w], [[1e6 * g]], [4.8])  # whatever the gradient's length
    assert float((moved - w).norm()) == pytest.approx(4.8e-3 * float(w.norm()))
    (moved,), _ = run([w], [[1e-6 * g]], [4.8])
    assert float((moved - w).norm()) == pytest.approx(4.8e-3 * float(w.norm()))


def test_float32_follows_float64() -> None:
    weights, gradients, rates = problem(torch.float32)
    want = oracle(
        [w.double() for w in weights],
        [[g.double() for g in s] for s in gradients],
        rates,
        "authors",
        1e-2,
        1e-3,
    )
    got, _ = run(weights, gradients, rates, weight_decay=1e-2)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=2e-6, atol=2e-6)


def test_decay_and_adaptation_are_independent_and_a_group_decides_for_its_vectors() -> None:
    w = torch.full((4,), 2.0, dtype=torch.float64)
    g = torch.full((4,), 1.0, dtype=torch.float64)

    def first_step(**group: Any) -> float:
        p = nn.Parameter(w.clone())
        p.grad = g.clone()
        LARS([{"params": [p], **group}], lr=1.0, weight_decay=0.5, trust_coefficient=0.25).step()
        moved = w - p.detach()
        assert torch.equal(moved, moved[0].expand(4))
        return float(moved[0])

    # ‖w‖ = 4; ‖g‖ = 2, ‖g + w/2‖ = 4, ‖g + w/4‖ = 3
    assert first_step() == 1.0
    assert first_step(weight_decay=0.5) == 2.0
    assert first_step(adapt=True) == pytest.approx(0.25 * 4 / 2 * 1.0)
    assert first_step(adapt=True, weight_decay=0.5) == pytest.approx(0.25 * 4 / 4 * 2.0)
    assert first_step(adapt=True, weight_decay=0.25) == pytest.approx(0.25 * 4 / 3 * 1.5)
    assert first_step(adapt=False) == 1.0


def test_a_supervised_head_gets_ordinary_l2() -> None:
    head = nn.Linear(3, 2, dtype=torch.float64)
    before = {name: p.detach().clone() for name, p in head.named_parameters()}
    optimizer = LARS(
        [{"params": [head.weight], "adapt": False, "weight_decay": 0.1}, {"params": [head.bias]}],
        lr=0.5,
        weight_decay=1e-6,
    )
    for p in head.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    torch.testing.assert_close(head.weight.detach(), before["weight"] - 0.5 * (1 + 0.1 * before["weight"]))
    torch.testing.assert_close(head.bias.detach(), before["bias"] - 0.5)


@pytest.mark.parametrize("form", ["authors", "popular", "port"])
def test_a_rate_in_a_tensor_is_the_same_as_a_number(form: str) -> None:
    weights, gradients, rates = problem()
    want, _ = run(weights, gradients, rates, form=form, weight_decay=1e-2)
    rate_tensor = torch.tensor(0.0, dtype=torch.float64)
    got, optimizer = run(
        weights,
        gradients,
        rates,
        set_rate=lambda _, rate: rate_tensor.fill_(rate),
        lr=rate_tensor,
        form=form,
        weight_decay=1e-2,
    )
    assert optimizer.param_groups[0]["lr"] is rate_tensor
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


class Recorder(TorchDispatchMode):
    """Names of the operations that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


WAITS = ("_local_scalar_dense", "item", "nonzero", "is_nonzero", "equal", "_to_copy", "masked_select")


@pytest.mark.parametrize("form", ["authors", "popular", "port"])
@pytest.mark.parametrize("tensor_rate", [False, True])
def test_nothing_waits_for_the_device(form: str, tensor_rate: bool) -> None:
    """None of the operations that bring a value to the host, and as many calls for 40 tensors as for 4."""
    calls = []
    for num_tensors in (4, 40):
        params = [nn.Parameter(torch.randn(3, 3)) for _ in range(num_tensors)]
        lr = torch.tensor(0.1) if tensor_rate else 0.1
        optimizer = LARS(params, lr, weight_decay=1e-2, form=form)
        for p in params:
            p.grad = torch.randn(3, 3)
        optimizer.step()  # makes the buffers
        with Recorder() as recorder:
            optimizer.step()
        waits = [name for name in recorder.names if name.removeprefix("aten::").split(".")[0] in WAITS]
        assert waits == []
        assert sum("_foreach" in name for name in recorder.names) >= 5
        calls.append(len([name for name in recorder.names if "detach" not in name]))
    assert calls[0] == calls[1] <= 25


def test_the_recorder_sees_a_wait() -> None:
    with Recorder() as recorder:
        assert torch.ones(()).item() == 1
    assert "aten::_local_scalar_dense" in recorder.names


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("form", ["authors", "popular", "port"])
def test_nothing_waits_for_a_real_device(form: str) -> None:
    params = [nn.Parameter(torch.randn(shape, device="cuda")) for shape in SHAPES]
    optimizer = LARS(params, torch.tensor(0.1, device="cuda"), weight_decay=1e-2, form=form, impl="reference")
    for p in params:
        p.grad = torch.randn_like(p)
    optimizer.step()
    before = [p.detach().clone() for p in params]
    torch.cuda.set_sync_debug_mode("error")
    try:
        optimizer.step()
        with pytest.raises(RuntimeError):  # the mode sees a wait
            params[0].sum().item()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(not torch.equal(p, old) for p, old in zip(params, before, strict=True) if p.numel())


def test_state_continues_exactly_through_a_state_dict_and_a_copy() -> None:
    weights, gradients, rates = problem()
    settings = {"weight_decay": 1e-2, "impl": "reference"}
    want, _ = run(weights, gradients, rates, **settings)

    middle, first = run(weights, gradients[:2], rates[:2], **settings)
    params = [nn.Parameter(w.clone()) for w in middle]
    second = LARS(params, lr=0.0, **settings)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert set(first.state_dict()["state"][0]) == {"momentum_buffer"}
    for grads, rate in zip(gradients[2:], rates[2:], strict=True):
        for p, g in zip(params, grads, strict=True):
            p.grad = g
        second.param_groups[0]["lr"] = rate
        second.step()
    for p, b in zip(params, want, strict=True):
        assert torch.equal(p.detach(), b)
    assert copy.deepcopy(second).impl == "reference"


def test_state_of_another_form_or_optimizer_is_refused() -> None:
    w = nn.Parameter(torch.ones(2, 2))
    ours = LARS([w], lr=1.0)
    with pytest.raises(ValueError, match="has form 'port' and this optimizer 'authors'"):
        ours.load_state_dict(LARS([w], lr=1.0, form="port").state_dict())
    with pytest.raises(ValueError, match="not of LARS"):
        ours.load_state_dict(torch.optim.SGD([w], lr=1.0).state_dict())


def test_parameters_without_gradient_stay_and_closures_run() -> None:
    used, unused = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))
    optimizer = LARS([used, unused], lr=1.0)

    def closure() -> float:
        optimizer.zero_grad()
        loss = used.square().sum()
        loss.backward()
        return loss.item()

    assert optimizer.step(closure) == 4.0
    assert torch.equal(unused.detach(), torch.ones(2, 2))
    assert unused not in optimizer.state
    # trust = η·‖w‖/‖2w‖ = η/2, times the gradient 2
    torch.testing.assert_close(used.detach(), torch.full((2, 2), 1 - 1e-3))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": -1.0}, "lr is -1.0; it must be 0 or more"),
        ({"momentum": 1.0}, "momentum is 1.0"),
        ({"weight_decay": -1e-6}, "weight_decay is -1e-06"),
        ({"trust_coefficient": 0.0}, "trust_coefficient is 0.0; it must be positive"),
        ({"form": "bolts"}, "one of authors, popular, port"),
        ({"impl": "cuda"}, "impl 'cuda' is unknown; there are auto, reference, fused, apex"),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LARS([nn.Parameter(torch.ones(2, 2))], **{"lr": 1.0, **settings})


def test_half_precision_weights_are_refused() -> None:
    with pytest.raises(ValueError, match="float16 parameter"):
        LARS([nn.Parameter(torch.ones(2, 2, dtype=torch.float16))], lr=1.0)


def test_fused_names_the_missing_requirement() -> None:
    w = nn.Parameter(torch.ones(2, 2))
    w.grad = torch.ones(2, 2)
    with pytest.raises(
        ValueError, match=r"torch.float32 on cpu, and it needs float32 on a CUDA device; use impl='auto'"
    ):
        LARS([w], lr=1.0, impl="fused").step()


def test_trains() -> None:
    """A quadratic whose rate starts at 4.8: weights of a fixed direction are found, at their own scale."""
    torch.manual_seed(0)
    target = torch.randn(16, 16, dtype=torch.float64)
    w = nn.Parameter(torch.randn(16, 16, dtype=torch.float64))
    optimizer = LARS([w], lr=4.8)
    for step in range(2000):
        optimizer.param_groups[0]["lr"] = 4.8 * 0.5 * (1 + math.cos(math.pi * step / 2000))
        w.grad = (w - target).detach()
        optimizer.step()
    assert float((w.detach() - target).norm() / target.norm()) < 1e-2
