"""A run folder of version 0.1 goes on: `fastclr train` continues it with the steps that 0.1 would have made."""

import pytest
from support.saved_by_0_1 import following_metrics, unpack_images, unpack_run

from fastclr.recipes import load_recipe
from fastclr.train.checkpoint import load_encoder
from fastclr.train.pretrain import train
from fastclr.train.sinks import read_metrics


def test_a_run_of_0_1_continues(tmp_path):
    file, folder = unpack_images(tmp_path), unpack_run(tmp_path)
    outcome = train(load_recipe(str(folder)), file, folder)
    assert (outcome.step, outcome.total_steps) == (24, 24)
    records = read_metrics(folder)
    assert [record["step"] for record in records] == list(range(1, 25))
    for record, expected in zip(records[8:], following_metrics(), strict=True):
        assert record["epoch"] == expected["epoch"]
        # the processor's order of additions differs, and training amplifies that
        assert record["loss"] == pytest.approx(expected["loss"], rel=1e-3)
        assert record["lr"] == pytest.approx(expected["lr"])


def test_an_encoder_of_0_1_loads(tmp_path):
    encoder, meta = load_encoder(unpack_run(tmp_path))
    assert (meta["depth"], meta["width"], meta["size"]) == (10, 0.125, 16)
    assert not encoder.training
