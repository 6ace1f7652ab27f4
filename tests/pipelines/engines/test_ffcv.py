"""The FFCV engine and TwoViewDecoder, against the native engine, on drawn images: JPEG, raw and corrupt."""

import gc
import os
import shutil
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numba
import numpy as np
import psutil
import pytest
import simplejpeg
import torch

import pipelines.engines.ffcv
from pipelines import BetonReader, TwoViewLoader, ViewSpec
from pipelines.beton import BetonWriter
from pipelines.beton.layout import FIELD_DESCRIPTOR, HEADER, INT_FIELD, metadata_type
from pipelines.engines import ENGINES
from pipelines.errors import EngineUnavailable
from pipelines.planner import BatchPlanner
from pipelines.views import as_specs

SPEC = ViewSpec.simclr(64)
CUT_SAMPLE = 4
"""The one of `corrupt_beton` that is truncated."""


@pytest.fixture(scope="module", autouse=True)
def _installed(require_package):
    require_package("ffcv")


@pytest.fixture(scope="module")
def mixed_beton(tmp_path_factory) -> Path:
    """43 images, every third one raw, of 1×1 to 130×90 pixels; some gray."""
    path, rng = tmp_path_factory.mktemp("beton") / "mixed.beton", np.random.default_rng(5)
    with BetonWriter(path, 43) as writer:
        for index in range(43):
            height, width = (1, 1) if index == 0 else rng.integers((20, 30), (131, 91))
            pixels = np.kron(rng.integers(0, 256, (-(-height // 8), -(-width // 8), 3)), np.ones((8, 8, 1)))
            pixels = pixels[:height, :width].astype(np.uint8)
            if index % 3 == 0:
                writer.add_raw(pixels, index)
            elif index % 5 == 0:
                writer.add_jpeg(simplejpeg.encode_jpeg(pixels[:, :, :1].copy(), 90, "GRAY", "Gray"), index)
            else:
                writer.add_jpeg(simplejpeg.encode_jpeg(pixels, 90), index)
    return path


def sampler_of(reader: BetonReader, **changes) -> BatchPlanner:
    specs = as_specs(changes.pop("spec", SPEC))
    return BatchPlanner(
        reader.heights, reader.widths, specs, **{"batch_size": 8, "drop_last": False, **changes}
    )


class Ffcv:
    """The engine, and the planner whose plans it runs."""

    def __init__(self, reader: BetonReader, planner: BatchPlanner, **options) -> None:
        self.reader, self.sampler = reader, planner
        self.engine = ENGINES["ffcv"](reader, planner, **{"num_threads": 2, **options})
        self.close = self.engine.close

    def run(self, plans):
        """Plans and the crops of their only group."""
        batches = self.engine.run(plans, self.sampler)
        try:
            for plan, (pixels,) in batches:
                yield plan, pixels
        finally:
            batches.close()


@pytest.fixture(scope="module")
def mixed(mixed_beton):
    """One compiled engine for many tests."""
    reader = BetonReader(mixed_beton)
    engine = Ffcv(reader, sampler_of(reader))
    yield engine
    engine.close()


def native_crops(reader: BetonReader, sampler: BatchPlanner, epoch: int = 0) -> list:
    engine = ENGINES["native"](reader, sampler, num_threads=2, augment=False)
    return [(plan, pixels) for plan, (pixels,) in engine.run(sampler.plans(epoch), sampler)]


def assert_same(ours, theirs) -> None:
    assert len(ours) == len(theirs)
    for (plan, pixels), (other_plan, other_pixels) in zip(ours, theirs, strict=True):
        assert (plan.epoch, plan.step) == (other_plan.epoch, other_plan.step)
        assert plan.indices.tolist() == other_plan.indices.tolist()
        np.testing.assert_array_equal(pixels, other_pixels)


def ffcv_threads() -> list[threading.Thread]:
    from ffcv.loader.epoch_iterator import EpochIterator

    return [thread for thread in threading.enumerate() if isinstance(thread, EpochIterator)]


def test_crops_are_those_of_the_native_engine(mixed):
    """JPEG, gray and raw, and a last batch of 3."""
    ours, theirs = list(mixed.run(mixed.sampler.plans(0))), native_crops(mixed.reader, mixed.sampler)
    assert ours[-1][1].shape == (2, 3, 64, 64, 3)
    assert sorted(np.concatenate([plan.indices for plan, _ in ours])) == list(range(43))
    assert_same(ours, theirs)
    assert ffcv_threads() == []


def test_other_epochs_and_resume(mixed):
    sampler = mixed.sampler
    first, second = list(mixed.run(sampler.plans(0))), list(mixed.run(sampler.plans(1)))
    assert_same(second, native_crops(mixed.reader, sampler, epoch=1))
    assert [plan.indices.tolist() for plan, _ in first] != [plan.indices.tolist() for plan, _ in second]
    assert_same(list(mixed.run(sampler.plans(1, consumed=16))), second[2:])
    # plans of several epochs in one run, more than FFCV was told that there are
    both = list(mixed.run(plan for epoch in (0, 1) for plan in sampler.plans(epoch)))
    assert_same(both, [*first, *second])


def test_two_runs_at_a_time(mixed):
    """As when a loader is iterated again before its last iterator was dropped: neither gets the other's crops."""
    expected = [native_crops(mixed.reader, mixed.sampler, epoch) for epoch in (0, 1)]
    runs = [mixed.run(mixed.sampler.plans(epoch)) for epoch in (0, 1)]
    crops = list(zip(*runs, strict=True))
    assert_same([one for one, _ in crops], expected[0])
    assert_same([other for _, other in crops], expected[1])


def test_dropped_iterators_leave_nothing_behind(mixed):
    from ffcv.loader.epoch_iterator import EpochIterator

    def drop(times: int) -> None:
        for number in range(times):
            batches = mixed.run(mixed.sampler.plans(0))
            next(batches)
            if number % 2:
                batches.close()  # and otherwise the garbage collector finds it

    drop(3)
    gc.collect()
    threads, memory = threading.active_count(), psutil.Process().memory_info().rss
    drop(20)
    gc.collect()
    assert threading.active_count() == threads
    assert psutil.Process().memory_info().rss - memory < 8 << 20  # buffers of 20 iterators: 16 MB
    # not isinstance(), at whose question lazy modules import themselves
    assert [thing for thing in gc.get_objects() if type(thing) is EpochIterator] == []


def test_ctrl_c_while_an_epoch_begins_leaves_no_thread(mixed, monkeypatch):
    """FFCV starts its thread in the iterator's constructor: nobody has the iterator then."""
    from ffcv.loader.epoch_iterator import EpochIterator

    def start(self) -> None:
        threading.Thread.start(self)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(EpochIterator, "start", start)
        with pytest.raises(KeyboardInterrupt):
            next(mixed.run(mixed.sampler.plans(0)))
    assert ffcv_threads() == []


def test_what_the_plans_raise_reaches_the_receiver(mixed):
    def plans():
        yield from list(mixed.sampler.plans(0))[:2]
        raise ValueError("no more numbers")

    batches = mixed.run(plans())
    assert [plan.step for plan, _ in (next(batches), next(batches))] == [0, 1]
    with pytest.raises(ValueError, match="no more numbers"):
        next(batches)
    assert ffcv_threads() == []


def test_torch_keeps_its_threads(mixed):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        batches = mixed.run(mixed.sampler.plans(0))
        next(batches)
        assert torch.get_num_threads() == 3
        batches.close()
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_fast_dct_is_ffcvs_own(mixed_beton, request):
    """One thread too: FFCV then compiles no parallel loop."""
    reader = BetonReader(mixed_beton)
    spec = ViewSpec.center(64, num_views=2)  # another view of the same image differs in nothing
    sampler = sampler_of(reader, spec=spec, order="sequential", subset=np.arange(1, 43))
    fast = list(Ffcv(reader, sampler, num_threads=1, fast_dct=True).run(sampler.plans(0)))
    accurate = native_crops(reader, sampler)
    assert any((ours != theirs).any() for (_, ours), (_, theirs) in zip(fast, accurate, strict=True))

    class FastReader(BetonReader):
        def decode(self, index, out=None, fast_dct=False):
            return super().decode(index, out, fast_dct=True)

    request.getfixturevalue("only_simplejpeg")  # so that the native engine asks the reader
    assert_same(fast, native_crops(FastReader(mixed_beton), sampler))


@pytest.fixture(scope="module")
def lying_beton(corrupt_beton, tmp_path_factory) -> Path:
    """`corrupt_beton`, and of sample 7 the metadata say one column less than its JPEG has."""
    path = tmp_path_factory.mktemp("beton") / "lying.beton"
    shutil.copy(corrupt_beton, path)
    start, row = HEADER.itemsize + 2 * FIELD_DESCRIPTOR.itemsize, metadata_type([2, INT_FIELD])
    metadata = np.memmap(path, row, "r+", offset=start, shape=40)
    metadata["f0"]["width"][7] -= 1
    metadata.flush()
    return path


def test_a_corrupt_sample_is_named_and_its_batch_held_back(lying_beton):
    reader = BetonReader(lying_beton)
    sampler = sampler_of(reader, order="sequential", batch_size=2)
    engine = Ffcv(reader, sampler)
    batches = engine.run(sampler.plans(0))
    assert [next(batches)[0].indices.tolist() for _ in range(2)] == [[0, 1], [2, 3]]
    with pytest.raises(ValueError, match=f"lying.beton: sample {CUT_SAMPLE}: "):
        next(batches)

    engine.sampler = replace(sampler, subset=np.delete(np.arange(40), CUT_SAMPLE))
    with pytest.raises(ValueError, match=r"sample 7: its JPEG is of .* pixels, the metadata say"):
        list(engine.run(engine.sampler.plans(0)))

    engine.sampler = replace(sampler, subset=np.delete(np.arange(40), [CUT_SAMPLE, 7]))
    assert_same(list(engine.run(engine.sampler.plans(0))), native_crops(reader, engine.sampler))
    assert ffcv_threads() == []


def test_decoder_in_a_stock_loader(corrupt_beton, tiny_beton):
    """Sequential order and a drawn epoch; the corrupt sample is black, and named as soon as anyone asks."""
    from ffcv.loader import Loader
    from ffcv.pipeline import PipelineSpec
    from numba.core import event

    from pipelines.engines.ffcv.engine import Pick, TwoViewDecoder

    shared_type = numba.uint8[::1]
    decoder = TwoViewDecoder(corrupt_beton, spec=SPEC, seed=3)
    pipelines_ = {
        "image": PipelineSpec("image", decoder=decoder, transforms=[Pick(0)]),
        "label": None,
        "image2": PipelineSpec(decoder, transforms=[Pick(1)]),
    }
    loader = Loader(str(corrupt_beton), 10, num_workers=2, drop_last=False, pipelines=pipelines_)
    assert shared_type.mutable  # FFCV's loader would change it, for all of the process

    def stock_epoch() -> np.ndarray:
        return np.concatenate([np.stack(views) for views in loader], axis=1)

    def expected(epoch: int) -> np.ndarray:
        reader = BetonReader(tiny_beton)
        sampler = sampler_of(reader, seed=3, order="sequential")
        crops = np.concatenate([pixels for _, pixels in native_crops(reader, sampler, epoch)], axis=1)
        crops[:, CUT_SAMPLE] = 0
        return crops

    np.testing.assert_array_equal(stock_epoch(), expected(0))
    with pytest.raises(ValueError, match=f"sample {CUT_SAMPLE}: "):
        decoder.set_epoch(1)
    decoder.set_epoch(1)
    with event.install_recorder("numba:compile") as compilations:
        second = stock_epoch()
    assert len(compilations.buffer) == 0
    np.testing.assert_array_equal(second, expected(1))
    with pytest.raises(ValueError, match=f"sample {CUT_SAMPLE}: "):
        list(decoder.batches(loader))
    assert ffcv_threads() == []

    with pytest.raises(ValueError, match="the loader has others"):
        Loader(str(tiny_beton), 10, num_workers=2, pipelines=pipelines_)


def test_the_script_of_the_docs(tiny_beton, tmp_path, monkeypatch, capsys):
    page = (Path(__file__).parents[3] / "docs" / "ffcv.md").read_text()
    (script,) = [
        block.split("```")[0] for block in page.split("```python\n") if block.startswith("import os")
    ]
    settings = 'FILE, SIZE, BATCH, EPOCHS = "train.beton", 224, 256, 100'
    assert settings in script
    shutil.copy(tiny_beton, tmp_path / "train.beton")
    monkeypatch.chdir(tmp_path)
    names: dict = {"__name__": "script"}
    exec(script.replace(settings, 'FILE, SIZE, BATCH, EPOCHS = "train.beton", 32, 8, 2'), names)
    assert capsys.readouterr().out.count("loss") == 2
    assert torch.isfinite(names["loss"])
    assert names["first"].shape == (8, 3, 32, 32)
    assert not torch.equal(names["first"], names["second"])


def test_batches_of_the_loader_are_those_of_the_native_engine(mixed_beton):
    def batches(engine: str) -> list:
        with TwoViewLoader(mixed_beton, 10, size=64, engine=engine, num_threads=2, seed=9) as loader:
            return [*loader, *loader]

    ours, theirs = batches("ffcv"), batches("native")
    assert [batch.epoch for batch in ours] == [0] * 4 + [1] * 4
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one.views, other.views)
        assert torch.equal(one.labels, other.labels)


def test_the_readers_file_is_read_whatever_its_name_leads_to(tmp_path, monkeypatch):
    """Another file of the same shapes is renamed over it, and the process goes elsewhere."""
    sound, other = np.full((16, 16, 3), 10, np.uint8), np.full((16, 16, 3), 200, np.uint8)
    monkeypatch.chdir(tmp_path)
    for name, pixels in (("ours.beton", sound), ("other.beton", other)):
        with BetonWriter(Path(name), 8) as writer:
            for _ in range(8):
                writer.add_raw(pixels)
    reader = BetonReader(Path("ours.beton"))
    engine = Ffcv(reader, sampler_of(reader))
    os.replace("other.beton", "ours.beton")
    monkeypatch.chdir("/")
    for size in (16, 24):  # FFCV opens the file for each size
        engine.sampler = replace(engine.sampler, specs=(ViewSpec.center(size),))
        ((_, pixels),) = engine.run(engine.sampler.plans(0))
        assert np.unique(pixels).tolist() == [10]
    engine.close()


def test_a_missing_package_is_named_with_its_cure(mixed_beton, monkeypatch):
    monkeypatch.setitem(sys.modules, "ffcv", None)
    monkeypatch.delitem(sys.modules, "pipelines.engines.ffcv.decoder", raising=False)
    monkeypatch.delattr(pipelines.engines.ffcv, "decoder", raising=False)
    with pytest.raises(EngineUnavailable, match=r"libturbojpeg0-dev .*pip install 'fastclr\[ffcv\]'"):
        TwoViewLoader(mixed_beton, 10, size=64, engine="ffcv")
