"""Loader states that version 0.1 saved lead to the batches that they led to then."""

from itertools import chain, islice, repeat

import pytest
from support.saved_by_0_1 import drawn_checksum, loader_states, unpack_images

from pipelines import TwoViewLoader, ViewSpec

CASES = loader_states()


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return unpack_images(tmp_path_factory.mktemp("v0.1"))


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_a_state_of_0_1_leads_to_the_same_batches(images, case):
    arguments = dict(case["arguments"])
    if "spec" in arguments:
        arguments["spec"] = ViewSpec.from_saved(arguments["spec"])
    with TwoViewLoader(images, num_threads=1, **arguments) as loader:
        loader.load_state_dict(case["state"])
        batches = chain.from_iterable(repeat(loader))
        for batch, expected in zip(islice(batches, 4), case["following"], strict=True):
            assert (batch.epoch, batch.step) == (expected["epoch"], expected["step"])
            assert batch.indices.tolist() == expected["indices"]
            assert drawn_checksum(batch.params) == expected["params"]
