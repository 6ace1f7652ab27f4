"""Every engine against torchvision, over the drawn boxes of real photos."""

import numpy as np
import pytest
import simplejpeg
from support.oracle import crop_oracle

from pipelines import BetonReader, BetonWriter, TwoViewLoader, ViewSpec
from pipelines.beton.layout import JPEG_MODE
from pipelines.engines import ENGINES
from pipelines.errors import CorruptSample
from pipelines.planner import BatchPlanner
from pipelines.views import as_specs

EXACT = ["native", "resident", "torchvision", "ffcv"]
"""Engines whose every pixel is bounded."""


@pytest.fixture(autouse=True)
def _installed(request, require_package):
    if request.node.callspec.params["engine"] == "ffcv":
        require_package("ffcv")


def run(
    engine: str, file, spec: ViewSpec, batch_size: int = 25, epoch: int = 0, consumed: int = 0, **options
):
    """The crops of an epoch, and the reader that they came from."""
    reader = BetonReader(file)
    sampler = BatchPlanner(
        reader.heights, reader.widths, as_specs(spec), batch_size, seed=11, drop_last=False
    )
    made = ENGINES[engine](reader, sampler, num_threads=2, augment=False, **options)
    crops = list(made.run(sampler.plans(epoch, consumed), sampler))
    made.close()
    return crops, reader


def differences(crops, reader):
    """Per view: |engine − oracle|, int [H, W, 3]."""
    for plan, groups in crops:
        views = [view for group in groups for view in np.asarray(group)]
        for row, index in enumerate(plan.indices):
            image, _ = reader[index]
            for view, box, flip in zip(views, plan.params.box[:, row], plan.params.flip[:, row], strict=True):
                expected = crop_oracle(image, box, flip, view.shape[1])
                yield np.abs(view[row].astype(int) - expected)


@pytest.mark.parametrize("engine", EXACT)
@pytest.mark.parametrize("which", ["photo_beton", "keep_beton"])
def test_crops_of_photos(request, engine, which):
    """500 random views, among them gray photos and ones with an EXIF orientation."""
    crops, reader = run(engine, request.getfixturevalue(which), ViewSpec.simclr(224))
    errors = [(difference.max(), difference.mean()) for difference in differences(crops, reader)]
    assert len(errors) >= 400
    most, mean = np.array(errors).T
    assert most.max() <= 1
    assert mean.mean() <= 0.02


@pytest.mark.parametrize("engine", EXACT)
@pytest.mark.parametrize("size", [32, 65, 160])  # 65: odd, and rows that are no multiple of a vector
def test_crops_of_drawn_images(tiny_beton, engine, size):
    crops, reader = run(engine, tiny_beton, ViewSpec.simclr(size), batch_size=7)
    assert sum(pixels.shape[1] for _, (pixels,) in crops) == len(reader)
    assert max(difference.max() for difference in differences(crops, reader)) <= 1


@pytest.mark.parametrize("engine", EXACT)
def test_an_epoch_covers_each_sample_once_and_resumes(tiny_beton, engine):
    whole, reader = run(engine, tiny_beton, ViewSpec.simclr(32), batch_size=7, epoch=2)
    seen = np.concatenate([plan.indices for plan, _ in whole])
    assert sorted(seen) == list(range(len(reader)))
    rest, _ = run(engine, tiny_beton, ViewSpec.simclr(32), batch_size=7, epoch=2, consumed=14)
    assert [plan.step for plan, _ in rest] == [plan.step for plan, _ in whole[2:]]
    for (_, (ours,)), (_, (theirs,)) in zip(rest, whole[2:], strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.fixture(scope="module")
def lying_beton(tmp_path_factory):
    """Three samples, of which the metadata of the middle one are those of a smaller image."""
    path = tmp_path_factory.mktemp("beton") / "lying.beton"
    rng = np.random.default_rng(0)
    jpegs = [simplejpeg.encode_jpeg(rng.integers(0, 256, (h, 100, 3), np.uint8)) for h in (80, 160, 80)]
    with BetonWriter(path, 3) as writer:
        for jpeg in jpegs:
            writer._add(JPEG_MODE, jpeg, 80, 100, 0)
    return path


@pytest.mark.parametrize("engine", ["native", "resident", "torchvision"])
def test_a_jpeg_that_is_not_what_the_metadata_say_is_replaced(lying_beton, engine):
    with pytest.warns(
        CorruptSample, match="sample 1: its JPEG is of 160×100 pixels, the metadata say 80×100"
    ):
        crops, _ = run(engine, lying_beton, ViewSpec.center(64))
    assert 1 not in crops[0][0].indices


@pytest.mark.parametrize("engine", ["ffcv", "dali"])
def test_or_named_in_an_error(lying_beton, engine, require_package):
    if engine == "dali":
        require_package("nvidia.dali")
    message = (
        f"sample 1: its JPEG is of 160×100 pixels.*; engine {engine} replaces no sample, engine native does"
    )
    with pytest.raises(ValueError, match=message):
        run(engine, lying_beton, ViewSpec.center(64))


@pytest.mark.parametrize(("engine", "announces"), [("native", True), ("resident", False)])
def test_the_system_hears_of_a_batch_before_its_samples_are_read(tiny_beton, monkeypatch, engine, announces):
    told: list[int] = []
    monkeypatch.setattr(BetonReader, "will_need", lambda self, indices: told.extend(indices.tolist()))
    with TwoViewLoader(tiny_beton, 4, size=32, engine=engine, num_threads=2) as loader:
        seen = [index for batch in loader for index in batch.indices.tolist()]
    assert told == (seen if announces else [])
