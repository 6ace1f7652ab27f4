"""The DALI engine with the real library, on the CPU and, where there is one, on a GPU."""

import gc
import sys
import threading

import numpy as np
import psutil
import pytest
import torch
from support.oracle import crop_oracle

from pipelines import BetonReader, EngineUnavailable, TwoViewLoader, ViewSpec
from pipelines.beton import BetonWriter
from pipelines.engines.dali import DaliEngine
from pipelines.planner import BatchPlanner


@pytest.fixture(autouse=True)
def _dali(require_package):
    require_package("nvidia.dali")


class Dali(DaliEngine):
    """The engine, and the planner whose plans it runs."""

    def __init__(self, reader: BetonReader, planner: BatchPlanner, **options) -> None:
        super().__init__(reader, planner, **options)
        self.planner = planner

    def epoch(self, number: int = 0, consumed: int = 0):
        """Plans and the crops of their only group."""
        for plan, (pixels,) in self.run(self.planner.plans(number, consumed), self.planner):
            yield plan, pixels


def engine(file, size=64, batch_size=7, **changes) -> Dali:
    reader = BetonReader(file)
    sampler = BatchPlanner(
        reader.heights, reader.widths, (ViewSpec.simclr(size),), batch_size, seed=5, drop_last=False
    )
    return Dali(reader, sampler, num_threads=2, **changes)


def errors(made: Dali, epoch: int = 0) -> list[np.ndarray]:
    """Per view |engine − oracle|, int [H, W, 3]."""
    found = []
    for plan, pixels in made.epoch(epoch):
        for row, index in enumerate(plan.indices):
            image, _ = made.reader[index]
            for view in range(2):
                box, flip = plan.params.box[view, row], plan.params.flip[view, row]
                expected = crop_oracle(image, box, flip, made.planner.groups[0].size)
                found.append(np.abs(pixels[view, row].astype(int) - expected))
    return found


@pytest.mark.parametrize("which", ["photo_beton", "keep_beton"])
def test_crops_of_photos(request, which, record_property):
    """Within one gray level inside; the outermost ring is DALI's own, and is only reported."""
    differences = errors(engine(request.getfixturevalue(which), size=224, batch_size=25))
    assert len(differences) >= 400
    inner = max(difference[1:-1, 1:-1].max() for difference in differences)
    assert inner <= 1
    assert np.mean([difference.mean() for difference in differences]) <= 0.02
    ring = max(difference.max() for difference in differences)
    print(f"outermost ring of pixels, {which}: at most {ring} gray levels")
    assert ring <= 24


def test_an_epoch_covers_each_sample_once_and_resumes(tiny_beton):
    made = engine(tiny_beton)
    whole = list(made.epoch(2))
    assert sorted(np.concatenate([plan.indices for plan, _ in whole])) == list(range(40))
    assert whole[-1][1].shape[1] == 5  # the tail: 40 = 5 · 7 + 5
    rest = list(made.epoch(2, consumed=21))
    assert [plan.step for plan, _ in rest] == [3, 4, 5]
    for ours, theirs in zip(rest, whole[3:], strict=True):
        np.testing.assert_array_equal(ours[1], theirs[1])


def test_batches_belong_to_the_receiver(tiny_beton):
    made = engine(tiny_beton)
    kept = list(made.epoch(0))
    for step, crops in enumerate(made.epoch(0)):
        np.testing.assert_array_equal(crops[1], kept[step][1])


def test_raw_pixels(tmp_path):
    rng = np.random.default_rng(0)
    with BetonWriter(tmp_path / "raw.beton", 20) as writer:
        for _ in range(20):
            writer.add_raw(rng.integers(0, 256, (*rng.integers(20, 90, 2), 3), np.uint8))
    differences = errors(engine(tmp_path / "raw.beton", size=32))
    assert max(difference[1:-1, 1:-1].max() for difference in differences) <= 1


def test_jpegs_beside_raw_pixels_are_refused(tmp_path, tiny_beton):
    with BetonWriter(tmp_path / "both.beton", 2) as writer, BetonReader(tiny_beton) as reader:
        writer.add_jpeg(reader.image_bytes(0).tobytes())
        writer.add_raw(np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(ValueError, match="engine native"):
        engine(tmp_path / "both.beton")


def test_a_corrupt_sample_is_named(corrupt_beton):
    with pytest.raises(ValueError, match=r"sample 4: .*engine native"):
        list(engine(corrupt_beton).epoch())


def test_dropped_iterators_leave_nothing_behind(tiny_beton):
    made = engine(tiny_beton)

    def drop(times: int) -> tuple[int, int, int]:
        for _ in range(times):
            next(made.epoch(0))
        gc.collect()
        process = psutil.Process()
        return process.num_threads(), threading.active_count(), process.memory_info().rss

    native_threads, python_threads, memory = drop(5)
    after = drop(20)
    assert after[:2] == (native_threads, python_threads)
    assert after[2] - memory < 30e6


def test_loader(tiny_beton):
    """Labels, shapes and the shared augmentation behind it."""
    settings = {"batch_size": 8, "spec": ViewSpec.crop_flip(48, num_views=2), "num_threads": 2}
    with (
        TwoViewLoader(tiny_beton, engine="dali", **settings) as ours,
        TwoViewLoader(tiny_beton, **settings) as theirs,
    ):
        for one, other in zip(ours, theirs, strict=True):
            assert one.labels.tolist() == other.labels.tolist()
            inner = (one.views - other.views)[..., 1:-1, 1:-1]
            assert inner.abs().max() < 1.01 / 255 / 0.224


def on_a_gpu(test):
    """nvJPEG decodes: pixels are close to libjpeg's, and no more is promised."""
    return pytest.mark.gpu(
        pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")(test)
    )


@on_a_gpu
def test_nvjpeg_gives_the_same_pictures_in_the_same_order(tiny_beton):
    ours, theirs = engine(tiny_beton, device="cuda"), engine(tiny_beton)
    pairs = zip(ours.epoch(1), theirs.epoch(1), strict=True)
    for one, other in pairs:
        assert isinstance(one[1], torch.Tensor) and one[1].device.type == "cuda"
        np.testing.assert_array_equal(one[0].indices, other[0].indices)
        difference = np.abs(one[1].cpu().numpy().astype(int) - other[1])
        assert difference.mean(axis=(2, 3, 4)).max() < 20  # the mirror image, or another's: 45 and more


@on_a_gpu
def test_nvjpeg_batches_belong_to_the_receiver(tiny_beton):
    made = engine(tiny_beton, device="cuda")
    kept = list(made.epoch(0))
    for step, crops in enumerate(made.epoch(0)):
        assert torch.equal(crops[1], kept[step][1])


@on_a_gpu
def test_nvjpeg_names_a_corrupt_sample(corrupt_beton):
    made = engine(corrupt_beton, device="cuda")
    with pytest.raises(ValueError, match=r"sample 4: .*engine native"):
        list(made.epoch(0))


def test_without_the_library(tiny_beton, monkeypatch):
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    with pytest.raises(EngineUnavailable, match=r"pip install 'fastclr\[dali\]'"):
        engine(tiny_beton)
