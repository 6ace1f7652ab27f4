"""Where views arrive: the CPU stage behind engines that give uint8, and a GPU where there is one."""

import numpy as np
import pytest
import torch

from pipelines import EngineUnavailable, TwoViewLoader, ViewSpec
from pipelines.ops.augment import cpu
from pipelines.planner import BatchPlanner
from pipelines.prefetch import _half

SPEC = ViewSpec.simclr(48)


def test_views_do_not_depend_on_the_number_of_threads():
    sampler = BatchPlanner(np.full(9, 60), np.full(9, 60), (SPEC,), batch_size=9)
    (plan,) = sampler.plans(0)
    crops = np.random.default_rng(0).integers(0, 256, (2, 9, 48, 48, 3), np.uint8)
    alone = cpu.augment(crops, plan.params, SPEC)
    for num_threads in (2, 4, 20):  # 20: more threads than images
        assert torch.equal(cpu.augment(crops, plan.params, SPEC, num_threads=num_threads), alone)


def test_unknown_and_missing_devices(tiny_beton):
    with pytest.raises(ValueError, match="cpu or cuda"):
        TwoViewLoader(tiny_beton, 4, spec=SPEC, device="meta")
    if not torch.cuda.is_available():
        with pytest.raises(EngineUnavailable, match="no GPU"):
            TwoViewLoader(tiny_beton, 4, spec=SPEC, device="cuda")


@pytest.mark.parametrize(("capability", "dtype"), [((7, 5), torch.float16), ((8, 0), torch.bfloat16)])
def test_half_precision_of_a_gpu(monkeypatch, capability, dtype):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert _half(torch.device("cuda")) == dtype


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("engine", ["native", "resident"])
def test_views_on_a_gpu_are_those_of_the_cpu(tiny_beton, engine):
    """Half precision: within 1/255 before normalisation, and one gray level more where a crop rounds differently."""
    settings = {"batch_size": 8, "spec": ViewSpec.crop_flip(48, num_views=2), "seed": 1}
    with (
        TwoViewLoader(tiny_beton, device="cuda", engine=engine, **settings) as ours,
        TwoViewLoader(tiny_beton, **settings) as theirs,
    ):
        for one, other in zip(ours, theirs, strict=True):
            assert one.views.dtype == torch.bfloat16
            assert one.labels.tolist() == other.labels.tolist()
            difference = (one.views.float().cpu() - other.views).abs().max()
            assert difference < 3 / 255 / 0.224


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("engine", ["native", "resident"])
def test_batches_on_a_gpu_belong_to_the_receiver(tiny_beton, engine):
    """The stage works ahead on a stream of its own: kept batches must not be overwritten."""
    with TwoViewLoader(tiny_beton, 4, spec=SPEC, device="cuda", engine=engine) as ours:
        kept = list(ours)
        ours.set_epoch(0)
        for one, other in zip(ours, kept, strict=True):
            assert torch.equal(one.views, other.views)
