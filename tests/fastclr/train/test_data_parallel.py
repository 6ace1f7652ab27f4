"""The model that ranks call: new processes go on with its weights as if they had always had them."""

from collections.abc import Iterable

import pytest
import torch
from support.ranks import run_ranks
from torch import Tensor

from fastclr.loss import nt_xent
from fastclr.model import SimCLR, projector, resnet
from fastclr.train.distributed import Ranks, data_parallel
from fastclr.train.grad_cache import cached_backward


def steps(model: SimCLR, ranks: Ranks, numbers: Iterable[int], micro_batch: int | None) -> None:
    """What one life of a run does: wraps the model, then moves it by plain gradient steps."""
    forward = data_parallel(model, ranks, accumulates=micro_batch is not None)
    for number in numbers:
        generator = torch.Generator().manual_seed(ranks.world_size * number + ranks.rank)
        views = torch.randn(2, 4, 3, 16, 16, generator=generator)
        model.zero_grad(set_to_none=True)
        if micro_batch is None:
            nt_xent(forward(views.flatten(0, 1))[1], 0.2, ranks.group).backward()
        else:
            cached_backward(forward, lambda z: nt_xent(z, 0.2, ranks.group), views, micro_batch)
        with torch.no_grad():
            for weight in model.parameters():
                weight -= 0.01 * weight.grad


def after(ranks: Ranks, lives: list[range], micro_batch: int | None) -> dict[str, Tensor]:
    """The state after some lives, each of which begins with the state of the one before."""
    state: dict[str, Tensor] = {}
    for numbers in lives:
        torch.manual_seed(0)
        encoder = resnet(10, 0.125, image_size=16)
        model = SimCLR(encoder, projector(encoder.num_features, num_layers=2, out_dim=16))
        model.load_state_dict(state or model.state_dict())
        steps(model, ranks, numbers, micro_batch)
        state = model.state_dict()
    return state


def differing(rank: int, world_size: int) -> list[str]:
    """Names of the tensors that differ between one life of six steps and two of three, at either micro-batch."""
    names = []
    for micro_batch in (None, 2):
        whole, continued = (
            after(Ranks(rank, world_size), lives, micro_batch)
            for lives in ([range(6)], [range(3), range(3, 6)])
        )
        assert len(whole) > 50
        names += [name for name, tensor in whole.items() if not torch.equal(tensor, continued[name])]
    return names


@pytest.mark.slow
def test_a_second_life_goes_on_to_the_bit():
    """Three ranks: with two the order of a sum's terms can't show, as a + b = b + a."""
    assert run_ranks(differing, 3) == [[], [], []]
