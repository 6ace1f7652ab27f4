"""`fastclr bench augment` on the CPU, and that the peers do the same work as ours."""

import numpy as np
import pytest
import torch

from benchmarks.kernels.augment import Options, kornia_simclr, run, torchvision_simclr
from benchmarks.kernels.inputs import drawn_crops
from pipelines.ops.augment import reference
from pipelines.views import ViewSpec

CPU = torch.device("cpu")


def test_report_on_a_cpu():
    threads = torch.get_num_threads()
    report = run(Options(sizes=(16, 40), batch_size=3, rounds=1, turn_s=0.001, device="cpu"))
    assert torch.get_num_threads() == threads
    assert [group.size for group in report.groups] == [40, 16]
    for group in report.groups:
        rows = {row.name: row for row in group.rows}
        assert {row.device for row in rows.values()} == {"cpu"}
        assert rows["fastclr gpu"].error == rows["fastclr gpu, graph"].error == "needs a CUDA device"
        for name in ("fastclr reference", "fastclr cpu", "torchvision v2"):
            row = rows[name]
            assert row.error == ""
            assert row.images_per_s == pytest.approx(3 / row.median_s)
            assert row.views_per_s == pytest.approx(2 * row.images_per_s)
        assert "once per batch" in rows["torchvision v2"].note
        assert ("no blur" in rows["kornia"].note) == (group.size <= 32)
    assert report.targets[0].state == "not measured"


def test_crops_are_drawn_anew_for_every_view():
    crops = drawn_crops(ViewSpec.simclr(24), 5, CPU)
    pixels = np.asarray(crops.pixels)
    assert pixels.shape == (2, 5, 24, 24, 3) and pixels.dtype == np.uint8 and pixels.flags.c_contiguous
    assert 20 < pixels.std() < 100
    assert len({pixels[v, b].tobytes() for v in range(2) for b in range(5)}) == 10


@pytest.mark.parametrize("peer", [kornia_simclr, torchvision_simclr])
def test_peers_without_chance_give_our_views(peer):
    """Everything drawn with probability 0: what is left is the scale, the normalisation and the layout."""
    if peer is kornia_simclr:
        pytest.importorskip("kornia")
    spec = ViewSpec.simclr(20, jitter_p=0.0, gray_p=0.0, blur_p=0.0)
    crops = drawn_crops(spec, 2, CPU)
    planes = torch.as_tensor(crops.pixels).flatten(0, 1).permute(0, 3, 1, 2).contiguous()
    ours = reference.augment(crops.pixels, crops.plan.params, spec).flatten(0, 1)
    torch.testing.assert_close(peer(spec)(planes), ours, rtol=1e-4, atol=1e-5, check_stride=False)


@pytest.mark.parametrize("peer", [kornia_simclr, torchvision_simclr])
def test_peers_do_jitter_gray_and_blur(peer):
    if peer is kornia_simclr:
        pytest.importorskip("kornia")
    torch.manual_seed(0)
    neutral = {"jitter_p": 0.0, "gray_p": 0.0, "blur_p": 0.0, "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    planes = torch.randint(256, (4, 3, 40, 40), dtype=torch.uint8)
    plain = peer(ViewSpec.simclr(40, **neutral))(planes)
    gray = peer(ViewSpec.simclr(40, **{**neutral, "gray_p": 1.0}))(planes)
    torch.testing.assert_close(gray[:, 0], gray[:, 2])
    blurred = peer(ViewSpec.simclr(40, **{**neutral, "blur_p": 1.0, "blur_sigma": (1.0, 1.0)}))(planes)
    assert blurred.std() < 0.5 * plain.std()  # a mean over some ten pixels of noise
    jittered = peer(ViewSpec.simclr(40, **{**neutral, "jitter_p": 1.0}))(planes)
    assert (jittered - plain).abs().mean() > 0.02
