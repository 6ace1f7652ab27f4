"""Batch norm over real ranks: equal to one process that has all rows."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from support.ranks import run_ranks
from torch import Tensor, nn

from fastclr.model import GlobalBatchNorm, SimCLR, convert_batchnorm, projector, resnet

CHANNELS = 3

# rows of each rank: equal; unequal; a rank of a single row; one that has none
SPLITS = {2: [(4, 4), (5, 2), (1, 3), (4, 0)], 4: [(2, 2, 2, 2), (1, 4, 0, 2)]}


def data(num_rows: int) -> tuple[Tensor, Tensor]:
    """Rows [N, C, 2, 3] far from zero, and the weights of a loss that is linear in the outputs."""
    generator = torch.Generator().manual_seed(0)
    x = 5 + torch.randn(num_rows, CHANNELS, 2, 3, generator=generator, dtype=torch.float64)
    return x, torch.randn(num_rows, CHANNELS, 2, 3, generator=generator, dtype=torch.float64)


def norm_with_odd_state(make: Callable[..., nn.Module], **settings: Any) -> Any:
    norm = make(CHANNELS, **settings).double()
    generator = torch.Generator().manual_seed(2)
    for tensor in norm.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(CHANNELS, generator=generator, dtype=torch.float64) + 0.5)
    return norm


SETTINGS: list[dict[str, Any]] = [{}, {"momentum": None}, {"affine": False}, {"track_running_stats": False}]


def two_batches(norm: nn.Module, x: Tensor, weights: Tensor) -> dict[str, Any]:
    """Outputs, gradients and state after two batches, then outputs in eval mode."""
    results = []
    for batch in (x, 2 * x + 1):
        batch = batch.clone().requires_grad_()
        norm.zero_grad()
        out = norm(batch)
        # the squares make the gradient depend on the outputs, and on other ranks' rows
        (out * weights + out.square() * weights.roll(1, 1)).sum().backward()
        results += [out.detach(), batch.grad]
    norm.eval()
    results.append(norm(x).detach() if isinstance(norm.running_mean, Tensor) else x)
    return {
        "rows": results,
        "gradients": [p.grad for p in norm.parameters()],
        "buffers": list(norm.buffers()),
    }


def worker(rank: int, world_size: int) -> list[Any]:
    results = []
    for split in SPLITS[world_size]:
        x, weights = (t.split(split)[rank] for t in data(sum(split)))
        results.append([two_batches(norm_with_odd_state(GlobalBatchNorm, **s), x, weights) for s in SETTINGS])
    return [results, simclr_step(rank, world_size), too_few(rank)]


def too_few(rank: int) -> str:
    try:
        GlobalBatchNorm(CHANNELS)(torch.zeros(int(rank == 0), CHANNELS))
    except ValueError as error:
        return str(error)
    return ""


def simclr_step(rank: int, world_size: int) -> dict[str, Any]:
    """A whole model, converted: the weight gradients, summed over ranks, of a loss that is a sum over rows."""
    torch.manual_seed(0)
    encoder = resnet(10, width=0.125, image_size=32)
    model = SimCLR(encoder, projector(encoder.num_features, out_dim=8)).double()
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(8, 3, 8, 8, generator=generator, dtype=torch.float64)
    weights = torch.randn(8, 8, generator=generator, dtype=torch.float64)
    if world_size > 1:
        names = list(model.state_dict())
        model = convert_batchnorm(model, dist.group.WORLD)
        assert list(model.state_dict()) == names
        assert not any(type(m) in (nn.BatchNorm1d, nn.BatchNorm2d) for m in model.modules())
        assert model.projector[-1][1].bias is None
    rows = slice(rank * 8 // world_size, (rank + 1) * 8 // world_size)
    _, z = model(images[rows])
    (z.tanh() * weights[rows]).sum().backward()
    gradients = [p.grad for p in model.parameters()]
    if world_size > 1:
        for gradient in gradients:
            dist.all_reduce(gradient)
    return {"z": z.detach(), "gradients": gradients, "buffers": list(model.buffers())}


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_equal_one_process(world_size: int) -> None:
    per_rank = run_ranks(worker, world_size)
    for case, split in enumerate(SPLITS[world_size]):
        x, weights = data(sum(split))
        for number, settings in enumerate(SETTINGS):
            want = two_batches(norm_with_odd_state(nn.BatchNorm2d, **settings), x, weights)
            got = [results[case][number] for results, _, _ in per_rank]
            for i, rows in enumerate(want["rows"]):
                close(torch.cat([g["rows"][i] for g in got]), rows)
            for i, gradient in enumerate(want["gradients"]):
                close(torch.stack([g["gradients"][i] for g in got]).sum(0), gradient)
            for g in got:
                for a, b in zip(g["buffers"], want["buffers"], strict=True):
                    close(a, b)

    want = simclr_step(0, 1)
    close(torch.cat([step["z"] for _, step, _ in per_rank]), want["z"])
    for _, step, _ in per_rank:
        for name in ("gradients", "buffers"):
            for a, b in zip(step[name], want[name], strict=True):
                # most kernels' gradients are sums that nearly cancel: relative to the whole tensor
                a, b = a.double(), b.double()
                assert float((a - b).norm()) <= 1e-9 * float(b.norm()) + 1e-12

    for _, _, message in per_rank:
        assert message == "batch norm got 1 values per channel in training; it needs 2 or more"


def close(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)


def test_single_process_details() -> None:
    (found,) = run_ranks(single_process, 1)
    assert found == {
        "half precision": True,
        "far from zero": True,
        "eval moves nothing": True,
        "layout": True,
    }


def single_process(rank: int, world_size: int) -> dict[str, bool]:
    found = {}
    # half precision in, statistics in float32, half precision out; also under autocast, and for [B, C]
    x = 100 + torch.randn(64, CHANNELS, generator=torch.Generator().manual_seed(0))
    norm, plain = GlobalBatchNorm(CHANNELS), nn.BatchNorm1d(CHANNELS)
    with torch.autocast("cpu", torch.bfloat16):
        out = norm(x.bfloat16())
    found["half precision"] = out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), plain(x.bfloat16().float()), rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(norm.running_var, plain.running_var, rtol=1e-5, atol=0)

    # far from zero, where a sum of squares would lose the variance in float32
    far = 1e4 + torch.randn(4096, CHANNELS, generator=torch.Generator().manual_seed(0))
    want = nn.BatchNorm1d(CHANNELS).double()(far.double())
    error = (GlobalBatchNorm(CHANNELS)(far).double() - want).detach().abs().max()
    found["far from zero"] = float(error) < 2e-2

    # in eval mode nothing moves, and nobody is asked
    buffers = [b.clone() for b in norm.buffers()]
    norm.eval()(x[:1])
    found["eval moves nothing"] = all(map(torch.equal, buffers, norm.buffers()))

    # channels-last stays
    images = torch.randn(2, CHANNELS, 4, 4).to(memory_format=torch.channels_last)
    found["layout"] = GlobalBatchNorm(CHANNELS)(images).is_contiguous(memory_format=torch.channels_last)
    return found


def test_conversion_keeps_tensors_settings_and_mode() -> None:
    model = nn.Sequential(
        nn.Linear(4, 4), nn.Sequential(nn.BatchNorm1d(4, eps=1e-3, momentum=0.2)), nn.ReLU()
    )
    model[1].eval()
    before = {name: t.data_ptr() for name, t in model.state_dict().items()}
    converted = convert_batchnorm(model)
    assert converted is model
    assert {name: t.data_ptr() for name, t in model.state_dict().items()} == before
    norm = model[1][0]
    assert isinstance(norm, GlobalBatchNorm)
    assert (norm.eps, norm.momentum, norm.training) == (1e-3, 0.2, False)
    assert model[0].training
    assert isinstance(convert_batchnorm(nn.BatchNorm2d(4)), GlobalBatchNorm)


def cuda_worker(rank: int, world_size: int) -> list[Tensor]:
    """torch's SyncBatchNorm beside ours, both ranks on one GPU, over gloo."""
    model = nn.Sequential(nn.BatchNorm2d(CHANNELS), nn.Flatten(), projector(6 * CHANNELS, out_dim=8))
    model = model.cuda()
    sync = convert_batchnorm(model, dist.group.WORLD)
    assert isinstance(sync[0], nn.SyncBatchNorm)
    results = []
    x, weights = (t.split((5, 2))[rank].float().cuda() for t in data(7))
    for norm in (sync[0], GlobalBatchNorm(CHANNELS, dist.group.WORLD).cuda()):
        results.append([t.cpu() for t in two_batches(norm, x, weights)["rows"] + list(norm.buffers())])
    assert sync(x).shape == (len(x), 8)  # a last norm without beta goes through it too
    return results


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_equals_torchs_sync_batch_norm() -> None:
    for theirs, ours in run_ranks(cuda_worker, 2):
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
