"""The fused LARS step against the reference in float64: in Triton's interpreter here, at real sizes on a GPU."""

import importlib.util
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.triton_support import interpreted, on_gpu
from torch import Tensor

from fastclr.optim import LARS
from fastclr.optim.lars.apex import apex_step
from fastclr.optim.lars.reference import FORMS, reference_step

# asked for without importing it, which a process must only do once it is to be an interpreter or is not
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton")

CHUNK, BLOCK = 8192, 2048
SHAPES = [
    (64, 3, 7, 7),  # whole blocks, and a rest
    (CHUNK + BLOCK + 1, 1),  # a second chunk, and a last block of one
    (3, CHUNK),  # chunks that are all whole
    (64,),  # shorter than a block
    (5, 3),
    (1, 1),
    (),
    (0, 4),  # nothing at all
]
TOLERANCE = 3e-6
"""Relative: float32, a few roundings, and sums of ten thousand squares."""


def draw(shapes: list[tuple[int, ...]], seed: int, device: str = "cpu") -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).to(device) for shape in shapes]


def settings(form: str, shapes: list[tuple[int, ...]], lr: Any = 0.3) -> dict[str, Any]:
    """Matrices decay and adapt; vectors don't; one matrix adapts without decay, one the other way round."""
    decay = [1e-2 if len(shape) > 1 else 0.0 for shape in shapes]
    adapt = [len(shape) > 1 for shape in shapes]
    decay[0], adapt[-1] = 0.0, False
    return {
        "lr": lr,
        "momentum": 0.9,
        "weight_decay": decay,
        "trust_coefficient": 2e-2,
        "adapt": adapt,
        "form": form,
    }


def doubles(tensors: list[Tensor]) -> list[Tensor]:
    return [t.double() for t in tensors]


def assert_close(got: list[Tensor], want: list[Tensor], tolerance: float = TOLERANCE) -> None:
    for a, b in zip(got, want, strict=True):
        assert a.shape == b.shape
        assert (a.double() - b).norm() <= tolerance * b.norm()  # NaN never passes


def fused_steps(
    params: list[Tensor], buffers: list[Tensor], steps: list[list[Tensor]], arguments: dict[str, Any]
) -> tuple[list[Tensor], list[Tensor]]:
    from fastclr.optim.lars import fused

    torch.use_deterministic_algorithms(True)  # unwritten memory is NaN
    try:
        for grads in steps:
            fused.fused_step(params, grads, buffers, **arguments)
    finally:
        torch.use_deterministic_algorithms(False)
    return params, buffers


@needs_triton
@pytest.mark.parametrize("form", FORMS)
def test_three_steps_are_the_references(form: str) -> None:
    """With gradients that move between the steps, and a weight and a gradient that are zero."""
    params, buffers = draw(SHAPES, 0), draw(SHAPES, 1)
    params[4].zero_()
    steps = [draw(SHAPES, seed) for seed in (2, 3, 4)]
    for grads in steps:
        grads[5].zero_()
    arguments = settings(form, SHAPES)
    want_params, want_buffers = doubles(params), doubles(buffers)
    for grads in steps:
        reference_step(want_params, doubles(grads), want_buffers, **arguments)
    got_params, got_buffers = interpreted(fused_steps, params, buffers, steps, arguments)
    assert_close(got_params, want_params)
    assert_close(got_buffers, want_buffers)


@needs_triton
@pytest.mark.parametrize("lr", [torch.tensor(0.3), torch.tensor(0.3, dtype=torch.float64), 0])
def test_learning_rates_in_memory(lr: Any) -> None:
    params, buffers, grads = draw(SHAPES, 0), draw(SHAPES, 1), draw(SHAPES, 2)
    arguments = settings("authors", SHAPES, lr)
    want_params, want_buffers = doubles(params), doubles(buffers)
    reference_step(want_params, doubles(grads), want_buffers, **{**arguments, "lr": float(lr)})
    got_params, got_buffers = interpreted(fused_steps, params, buffers, [grads], arguments)
    assert_close(got_params, want_params)
    assert_close(got_buffers, want_buffers)


@needs_triton
def test_memory_orders_and_addresses() -> None:
    """Channels-last weights; a gradient laid out otherwise; and one at an address that only 4 divides, as DDP's
    bucket views have it."""
    interpreted(check_memory_orders, "cpu")


@on_gpu
def test_gpu_memory_orders_and_addresses() -> None:
    """Only a GPU minds a 16-byte load at an address that 16 does not divide."""
    check_memory_orders("cuda")


def check_memory_orders(device: str) -> None:
    from fastclr.optim.lars.fused import fused_step

    shapes = [(8, 16, 3, 3), (8, 16, 3, 3), (50, 90)]
    params, buffers, grads = (draw(shapes, seed, device) for seed in range(3))
    want_params, want_buffers = doubles(params), doubles(buffers)
    arguments = settings("authors", shapes)
    reference_step(want_params, doubles(grads), want_buffers, **arguments)

    for i in (0, 1):
        params[i] = params[i].contiguous(memory_format=torch.channels_last)
        buffers[i] = buffers[i].contiguous(memory_format=torch.channels_last)
    grads[0] = grads[0].contiguous(memory_format=torch.channels_last)
    grads[2] = torch.cat([grads[2].new_zeros(1), grads[2].flatten()])[1:].view(50, 90)
    assert grads[2].data_ptr() % 16 == 4
    kept = [g.clone() for g in grads]
    fused_step(params, grads, buffers, **arguments)
    assert_close(params, want_params)
    assert_close(buffers, want_buffers)
    for gradient, before in zip(grads, kept, strict=True):
        assert torch.equal(gradient, before)
    assert params[0].is_contiguous(memory_format=torch.channels_last)


@needs_triton
def test_plans_last_while_tensors_stay() -> None:
    interpreted(check_plans)


def check_plans() -> None:
    from fastclr.optim.lars import fused

    shapes = [(5,), (10, 10)]
    params, buffers, grads, others = (draw(shapes, seed) for seed in range(4))

    step, other = fused.FusedStep(), fused.FusedStep()

    def plan(grads: list[Tensor]) -> Any:
        step(params, grads, buffers, **settings("authors", shapes))
        return step._last

    first = plan(grads)
    assert plan(grads) is first
    # another optimizer, or group, that begins with the same parameter has plans of its own
    other(params[:1], grads[:1], buffers[:1], **settings("authors", shapes[:1]))
    assert plan(grads) is first
    second = plan(others)
    assert second is not first
    assert second.table[:, 1].tolist() == [g.data_ptr() for g in others]
    assert second.table[:, 3].tolist() == [5, 100]


@needs_triton
def test_strides_that_are_never_used() -> None:
    interpreted(check_strides)


def check_strides() -> None:
    """The gradient of a 1×1 convolution on channels-last images has the weight's order in memory."""
    from fastclr.optim.lars import fused

    shape = (6, 4, 1, 1)
    params, buffers, grads = (draw([shape], seed) for seed in range(3))
    want = doubles(params)
    reference_step(want, doubles(grads), doubles(buffers), **settings("authors", [shape]))
    grads = [grads[0].as_strided(shape, (4, 1, 4, 4))]
    step = fused.FusedStep()
    step(params, grads, buffers, **settings("authors", [shape]))
    assert step._last is not None
    assert step._last.table[0, 1] == grads[0].data_ptr()  # no copy
    assert_close(params, want)


@needs_triton
@pytest.mark.parametrize(
    ("param", "needed"),
    [
        (torch.zeros(3, 4, dtype=torch.float64), "float32"),
        (torch.zeros(3, 8)[:, ::2], "dense"),
    ],
)
def test_unsupported_parameters_are_refused(param: Tensor, needed: str) -> None:
    with pytest.raises(ValueError, match=needed):
        interpreted(fused_steps, [param], [torch.zeros_like(param)], [[param]], settings("authors", [(3, 4)]))


def test_a_cpu_tensor_without_the_interpreter() -> None:
    pytest.importorskip("triton")
    with pytest.raises(ValueError, match="CUDA"):
        fused_steps([torch.ones(3)], [torch.ones(3)], [[torch.ones(3)]], settings("authors", [(3,)]))


@pytest.mark.parametrize("form", FORMS)
def test_apex_norms(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for the compiled extension: chunk size, overflow flag, list of lists, per tensor or in all."""

    def multi_tensor_l2norm(
        chunk: int, overflow: Tensor, lists: list[list[Tensor]], per_tensor: bool
    ) -> tuple[Tensor, Tensor]:
        assert overflow.dtype == torch.int32
        assert per_tensor
        norms = torch.stack([t.norm() for t in lists[0]])
        return norms.norm(), norms

    monkeypatch.setitem(sys.modules, "amp_C", SimpleNamespace(multi_tensor_l2norm=multi_tensor_l2norm))
    params, buffers, grads = (draw(SHAPES, seed) for seed in range(3))
    want_params, want_buffers = doubles(params), doubles(buffers)
    reference_step(want_params, doubles(grads), want_buffers, **settings(form, SHAPES))
    apex_step(params, grads, buffers, **settings(form, SHAPES))
    assert_close(params, want_params)
    assert_close(buffers, want_buffers)


def test_without_apex(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "amp_C", None)
    weight = torch.nn.Parameter(torch.ones(2, 2))
    weight.grad = torch.ones(2, 2)
    with pytest.raises(ValueError, match="NGC"):
        LARS([weight], lr=0.1, impl="apex").step()


def resnet_shapes() -> list[tuple[int, ...]]:
    from torchvision.models import resnet50

    with torch.device("meta"):
        return [tuple(p.shape) for p in resnet50().parameters()]


@on_gpu
@pytest.mark.parametrize("form", FORMS)
def test_gpu_resnet50(form: str) -> None:
    shapes = resnet_shapes()
    params, buffers = draw(shapes, 0, "cuda"), draw(shapes, 1, "cuda")
    want_params, want_buffers = doubles(params), doubles(buffers)
    copies, copied_buffers = [p.clone() for p in params], [b.clone() for b in buffers]
    for seed in (2, 3):
        grads = draw(shapes, seed, "cuda")
        reference_step(want_params, doubles(grads), want_buffers, **settings(form, shapes))
        fused_steps(params, buffers, [grads], settings(form, shapes))
        fused_steps(copies, copied_buffers, [grads], settings(form, shapes))
    assert_close(params, want_params)
    assert_close(buffers, want_buffers)
    for a, b in zip(params + buffers, copies + copied_buffers, strict=True):
        assert torch.equal(a, b)  # the same bits on every run


@on_gpu
def test_gpu_no_wait_and_graph() -> None:
    """A step waits for nothing; and a captured one follows a learning rate on the device."""
    shapes = [(64, 64, 3, 3), (64,), (1000, 300)]
    weights = [torch.nn.Parameter(p) for p in draw(shapes, 0, "cuda")]
    copies = [torch.nn.Parameter(w.detach().double()) for w in weights]
    lr = torch.tensor(0.3, device="cuda")
    optimizer = LARS(weights, lr=lr, weight_decay=1e-4, impl="fused")
    reference = LARS(copies, lr=lr, weight_decay=1e-4, impl="reference")

    def set_gradients(seed: int) -> None:
        for weight, copy, grad in zip(weights, copies, draw(shapes, seed, "cuda"), strict=True):
            if weight.grad is None:
                weight.grad = torch.empty_like(weight)
            weight.grad.copy_(grad)
            copy.grad = grad.double()

    set_gradients(1)
    optimizer.step()
    reference.step()
    set_gradients(2)
    torch.cuda.set_sync_debug_mode("error")
    try:
        optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    reference.step()

    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):  # captures, does not run
        optimizer.step()
    for seed, rate in ((3, 0.3), (4, 0.1)):
        set_gradients(seed)
        lr.fill_(rate)
        graph.replay()
        reference.step()
    set_gradients(5)
    optimizer.step()  # a step outside the graph, behind it
    reference.step()
    assert_close([w.detach() for w in weights], [c.detach() for c in copies], 1e-5)


@on_gpu
@pytest.mark.parametrize(("first", "second"), [("fused", "reference"), ("reference", "fused")])
def test_gpu_state_moves(first: str, second: str) -> None:
    shapes = [(64, 64, 3, 3), (64,)]
    weights = [torch.nn.Parameter(p) for p in draw(shapes, 0, "cuda")]
    copies = [torch.nn.Parameter(w.detach().clone()) for w in weights]

    def run(optimizer: LARS, params: list[torch.nn.Parameter], seed: int) -> None:
        for param, grad in zip(params, draw(shapes, seed, "cuda"), strict=True):
            param.grad = grad
        optimizer.step()

    straight = LARS(copies, lr=0.3, weight_decay=1e-4, impl=first)
    before = LARS(weights, lr=0.3, weight_decay=1e-4, impl=first)
    after = LARS(weights, lr=0.3, weight_decay=1e-4, impl=second)
    run(straight, copies, 1)
    run(straight, copies, 2)
    run(before, weights, 1)
    after.load_state_dict(before.state_dict())
    run(after, weights, 2)
    assert_close([w.detach() for w in weights], doubles([c.detach() for c in copies]), 1e-5)
