"""A loader on a set of several files gives what it gives on one file of the same images."""

import numpy as np
import pytest

from pipelines import BetonReader, BetonWriter, TwoViewLoader
from pipelines.beton.sets import shard_path
from pipelines.planner import ORDERS
from tests.support.loader_support import HOST_ENGINES, assert_same, contents, loader

SAMPLES = (11, 1, 21, 7)
"""Of the shards: 40 in all."""


def split(whole, folder, samples=SAMPLES) -> list:
    paths = [shard_path(folder / "set.beton", k, len(samples)) for k in range(len(samples))]
    with BetonReader(whole) as reader:
        first = 0
        for path, count in zip(paths, samples, strict=True):
            with BetonWriter(path, count) as writer:
                for index in range(first, first + count):
                    writer.add_jpeg(reader.image_bytes(index).tobytes(), int(reader.labels[index]))
            first += count
    return paths


@pytest.fixture(scope="module")
def shards(tiny_beton, tmp_path_factory) -> list:
    return split(tiny_beton, tmp_path_factory.mktemp("set"))


@pytest.mark.parametrize("order", ORDERS)
def test_the_same_batches(tiny_beton, shards, order):
    with loader(tiny_beton, order=order) as one, loader(shards, order=order) as several:
        assert_same(contents(several), contents(one))


@pytest.mark.parametrize("engine", [*HOST_ENGINES, "torchvision", "dali"])
def test_every_engine(tiny_beton, shards, engine, require_package):
    if engine == "dali":
        require_package("nvidia.dali")
    with loader(tiny_beton, engine=engine) as one, loader(shards[0].parent, engine=engine) as several:
        assert_same(contents(several), contents(one))


@pytest.mark.usefixtures("only_simplejpeg")
def test_decoded_by_simplejpeg(tiny_beton, shards):
    with loader(tiny_beton) as one, loader(f"{shards[0].parent}/*.beton") as several:
        assert several._engine.decodes_with == "simplejpeg"
        assert_same(contents(several), contents(one))


def test_ranks_of_a_set_see_the_batches_of_one(tiny_beton, shards):
    with loader(tiny_beton, batch_size=6) as one:
        whole = contents(one)
    parts = []
    for rank in range(2):
        with loader(shards, batch_size=3, rank=rank, world_size=2) as part:
            parts.append(contents(part))
    for batch, first, second in zip(whole, *parts, strict=True):
        assert batch[2] == first[2] + second[2]
        assert (batch[4][:, :3] == first[4]).all()
        assert (batch[4][:, 3:] == second[4]).all()


def test_resume_in_mid_epoch(tiny_beton, shards):
    with loader(tiny_beton) as one:
        whole = contents(one)
    with loader(shards) as several:
        batches = iter(several)
        next(batches), next(batches)
        state = several.state_dict()
        del batches
    with loader(shards[0].parent) as again:
        again.load_state_dict(state)
        assert_same(contents(again), whole[2:])
    for other in (shards[::-1], tiny_beton):
        with loader(other) as different, pytest.raises(ValueError, match="fingerprint"):
            different.load_state_dict(state)


def test_a_corrupt_sample_is_replaced_across_files(corrupt_beton, tmp_path):
    """Sample 4 is the last of its file, and its successor the first of the next."""
    shards = split(corrupt_beton, tmp_path, (5, 35))
    named = pytest.warns(RuntimeWarning, match=r"set-00000-of-00002\.beton: sample 4 \(sample 4 of the set\)")
    with loader(shards, order="sequential") as several, named:
        first = next(iter(several))
    assert first.indices.tolist() == [0, 1, 2, 3, 5, 5]


def test_indices_number_the_samples_through(shards):
    with loader(shards, indices=[10, 11, 12, 33, 39, 0], order="sequential") as several:
        assert next(iter(several)).indices.tolist() == [0, 10, 11, 12, 33, 39]
        np.testing.assert_array_equal(next(iter(several)).labels.numpy(), np.array([0, 2, 3, 0, 1, 3]))


def test_ffcv_reads_one_file(shards):
    """The error needs no ffcv: it comes before that is imported."""
    with pytest.raises(ValueError, match=r"set of 4 files, and FFCV's loader reads one: use engine native"):
        TwoViewLoader(shards, 4, size=32, engine="ffcv")


@pytest.mark.slow
def test_ffcvs_operation_reads_one_file(shards, require_package):
    require_package("ffcv")
    from pipelines.engines.ffcv.engine import TwoViewDecoder

    with pytest.raises(ValueError, match="FFCV's loader reads one"):
        TwoViewDecoder(shards, size=32)
