"""Losses over real ranks: with DDP's averaging, W ranks are one process."""

from typing import Any

import pytest
import torch
import torch.distributed as dist
from support.ranks import run_ranks
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from fastclr.loss import contrastive_metrics, margin_triplet, nt_logistic, nt_xent

NUM_IMAGES, WIDTH, TEMPERATURE = 12, 7, 0.2

LOSSES = {
    "nt_xent": lambda z, group: nt_xent(z, TEMPERATURE, group),
    "nt_logistic": lambda z, group: nt_logistic(z, TEMPERATURE, False, group),
    "nt_logistic_mined": lambda z, group: nt_logistic(z, TEMPERATURE, True, group),
    "margin_triplet": lambda z, group: margin_triplet(z, 0.4, False, group),
    "margin_triplet_mined": lambda z, group: margin_triplet(z, 0.4, True, group),
}


def views() -> Tensor:
    """[2, N, 5]: inputs of a small encoder, two views of each image."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(1, NUM_IMAGES, 5, generator=generator, dtype=torch.float64)
    return images + 0.3 * torch.randn(2, NUM_IMAGES, 5, generator=generator, dtype=torch.float64)


def encoder() -> torch.nn.Module:
    torch.manual_seed(1)
    return torch.nn.Sequential(torch.nn.Linear(5, 9), torch.nn.Tanh(), torch.nn.Linear(9, WIDTH)).double()


def worker(rank: int, world_size: int, use_ddp: bool) -> dict[str, Any]:
    group = dist.group.WORLD
    rows = slice(rank * NUM_IMAGES // world_size, (rank + 1) * NUM_IMAGES // world_size)
    results: dict[str, Any] = {}
    for name, loss_function in LOSSES.items():
        model = encoder()
        x = views()[:, rows].flatten(0, 1).requires_grad_()
        # held by a name: it must outlive the backward pass
        parallel = DistributedDataParallel(model) if use_ddp else model
        loss = loss_function(parallel(x), group)
        loss.backward()
        if not use_ddp:  # DDP's averaging; its import takes seconds
            for p in model.parameters():
                dist.all_reduce(p.grad)
                p.grad /= world_size
        results[name] = {
            "loss": loss.detach(),
            "weights": [p.grad for p in model.parameters()],
            "inputs": x.grad.unflatten(0, (2, -1)),
        }
    z = encoder()(views()[:, rows].flatten(0, 1)).detach()
    results["metrics"] = torch.stack(contrastive_metrics(z, TEMPERATURE, group))
    # no group: on its own, though there are other ranks
    results["alone"] = nt_xent(z, TEMPERATURE)
    results["z"] = z
    results["refusals"] = refusals(torch.randn(2 * (3 + rank), 4))
    return results


def refusals(z: Tensor) -> list[str]:
    messages = []
    for name in ("nt_xent", "margin_triplet"):
        try:
            LOSSES[name](z, dist.group.WORLD)
        except ValueError as error:
            messages.append(str(error))
    return messages


@pytest.mark.slow
@pytest.mark.parametrize(("world_size", "use_ddp"), [(1, False), (2, True), (4, False)])
def test_ranks_equal_one_process(world_size: int, use_ddp: bool) -> None:
    per_rank = run_ranks(worker, world_size, use_ddp)
    for name, loss_function in LOSSES.items():
        model = encoder()
        x = views().flatten(0, 1).requires_grad_()
        want = loss_function(model(x), None)
        want.backward()
        assert x.grad is not None
        losses = torch.stack([result[name]["loss"] for result in per_rank])
        if world_size > 1:
            assert len(losses.unique()) == world_size  # each is the mean over that rank's rows
        torch.testing.assert_close(losses.mean(), want.detach(), rtol=1e-9, atol=0)
        for result in per_rank:
            for got, p in zip(result[name]["weights"], model.parameters(), strict=True):
                torch.testing.assert_close(got, p.grad, rtol=1e-9, atol=1e-15)
        # a rank's own rows: W times their share, which the averaging takes back
        inputs = torch.cat([result[name]["inputs"] for result in per_rank], 1).flatten(0, 1)
        torch.testing.assert_close(inputs / world_size, x.grad, rtol=1e-9, atol=1e-15)
    z = encoder()(views().flatten(0, 1)).detach()
    metrics = torch.stack([result["metrics"] for result in per_rank]).mean(0)
    torch.testing.assert_close(metrics, torch.stack(contrastive_metrics(z, TEMPERATURE)), rtol=1e-9, atol=0)
    for result in per_rank:
        torch.testing.assert_close(result["alone"], nt_xent(result["z"], TEMPERATURE), rtol=1e-9, atol=0)
    # every rank refuses rows of unequal numbers, and none waits for another
    sizes = [2 * (3 + rank) for rank in range(world_size)]
    refused = f"the ranks have {sizes} rows of z; they need the same number"
    for result in per_rank:
        assert [refused in message for message in result["refusals"]] == [True] * 2 * (world_size > 1)
