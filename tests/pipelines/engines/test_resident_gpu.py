"""The resident engine of a GPU, in Triton's interpreter: only its memory is another, so that is what is replaced."""

from unittest import mock

import numpy as np
import pytest
from support.triton_support import interpreted

from pipelines import BetonReader, ViewSpec
from pipelines.engines.resident.host import ResidentEngine
from pipelines.planner import BatchPlanner

pytest.importorskip("triton")


def plans_and_pixels(file: str, free: int = 1 << 30) -> tuple[list[np.ndarray], list[np.ndarray], list[str]]:
    """Per batch the indices and crops [V, B, H, W, 3], and the reasons for replacing samples; a host's as well."""
    from pipelines.engines.resident.gpu import ResidentGpuEngine

    with (
        BetonReader(file) as reader,
        mock.patch("torch.cuda.mem_get_info", return_value=(free, free)),
        mock.patch("torch.Tensor.pin_memory", lambda tensor: tensor),
        mock.patch("pipelines.engines.resident.gpu.PART_BYTES", 100_000),  # some five images
    ):
        sampler = BatchPlanner(
            reader.heights, reader.widths, (ViewSpec.simclr(24),), 7, seed=5, drop_last=False
        )
        engine = ResidentGpuEngine(reader, sampler, num_threads=2, device="cpu")
        batches = list(engine.run(sampler.plans(0), sampler))
        engine.close()
    return (
        [plan.indices for plan, _ in batches],
        [pixels.numpy() for _, (pixels,) in batches],
        list(engine.corrupt.values()),
    )


@pytest.mark.filterwarnings("ignore:.*replaced by the next sample:RuntimeWarning")
@pytest.mark.parametrize("which", ["tiny_beton", "corrupt_beton"])
def test_batches_are_those_of_the_host(request, which):
    file = request.getfixturevalue(which)
    indices, pixels, reasons = interpreted(plans_and_pixels, str(file))
    with BetonReader(file) as reader:
        sampler = BatchPlanner(
            reader.heights, reader.widths, (ViewSpec.simclr(24),), 7, seed=5, drop_last=False
        )
        host = ResidentEngine(reader, sampler, num_threads=2, augment=False)
        expected = list(host.run(sampler.plans(0), sampler))
        assert reasons == list(host.corrupt.values())
        host.close()
    assert len(reasons) == (which == "corrupt_beton")
    assert len(indices) == len(expected)
    for got_indices, got, (plan, (crops,)) in zip(indices, pixels, expected, strict=True):
        assert got_indices.tolist() == plan.indices.tolist()
        off = np.abs(got.astype(int) - crops)
        assert off.max() <= 1
        assert off.mean() <= 0.02


def test_a_set_that_does_not_fit_says_so(tiny_beton):
    with pytest.raises(ValueError, match=r"more than half of the 0\.0 GiB free on cpu; use engine native"):
        interpreted(plans_and_pixels, str(tiny_beton), 1 << 10)
