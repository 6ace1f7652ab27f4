"""kNN in mid-training: the number is that of an evaluation, and the run is the same run."""

import dataclasses
import os
import signal
from pathlib import Path

import pytest
import torch
from support.tiny_run import write_tiny_file

from fastclr.config import Config
from fastclr.device import has_bfloat16
from fastclr.evaluate import knn_accuracy
from fastclr.evaluate.encoder import FrozenEncoder
from fastclr.train import online_knn
from fastclr.train.checkpoint import load_checkpoint, load_encoder
from fastclr.train.pretrain import train
from fastclr.train.sinks import read_metrics
from pipelines import BetonReader
from pipelines.beton import BetonWriter

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def val_file(tmp_path_factory) -> Path:
    return write_tiny_file(tmp_path_factory.mktemp("val") / "val.beton", num_images=41, seed=0)


@pytest.fixture
def config(tiny_config) -> Config:
    return dataclasses.replace(tiny_config, train=dataclasses.replace(tiny_config.train, eval_epochs=2))


def accuracies(folder: Path) -> dict[int, float]:
    return {record["step"]: record["val_knn"] for record in read_metrics(folder) if "val_knn" in record}


def same_state(a: Path, b: Path) -> None:
    one, other = (load_checkpoint(folder / "last.pt") for folder in (a, b))
    assert one["step"] == other["step"]
    for name, tensor in one["model"].items():
        assert torch.equal(tensor, other["model"][name]), name
    for number, state in one["optimizer"]["state"].items():
        assert torch.equal(state["momentum_buffer"], other["optimizer"]["state"][number]["momentum_buffer"])
    assert one["loader"] == other["loader"]
    assert torch.equal(one["random"]["cpu"], other["random"]["cpu"])


def test_it_changes_nothing_of_the_run(tmp_path, tiny_file, val_file, config):
    """With and without, and stopped in mid-epoch and continued: bit for bit the same state."""
    train(config, tiny_file, tmp_path / "without")
    train(config, tiny_file, tmp_path / "with", val=val_file)
    same_state(tmp_path / "without", tmp_path / "with")

    def stop(record: dict) -> None:
        if record["step"] in (8, 13):
            os.kill(os.getpid(), signal.SIGTERM)

    stopped = tmp_path / "stopped"
    steps = [train(config, tiny_file, stopped, val=val_file, sinks=[stop]).step for _ in range(3)]
    assert steps == [9, 14, 20]
    same_state(tmp_path / "without", stopped)
    # 79 images: two epochs end in step 8, four in step 16; the last step is 20
    assert list(accuracies(stopped)) == [8, 16, 20]
    assert accuracies(stopped) == accuracies(tmp_path / "with")


def test_it_is_the_accuracy_of_an_evaluation(tmp_path, tiny_file, val_file, config):
    train(config, tiny_file, tmp_path / "run", val=val_file)
    encoder, meta = load_encoder(tmp_path / "run")
    half = torch.bfloat16 if has_bfloat16(CPU) else None
    model = FrozenEncoder.from_meta(encoder, meta, CPU, autocast=half)
    with BetonReader(tiny_file) as bank, BetonReader(val_file) as val:
        pair = [*model.features(bank, model.center()), *model.features(val, model.center())]
    assert accuracies(tmp_path / "run")[20] == knn_accuracy(*pair, k=79)
    assert accuracies(tmp_path / "run")[20] > 0.5, "chance is 0.2"


def test_a_large_bank_is_thinned_out(tmp_path, tiny_file, val_file, config, monkeypatch):
    monkeypatch.setattr(online_knn, "MAX_BANK", 3)
    train(config, tiny_file, tmp_path / "run", val=val_file)
    # samples 0, 39 and 78 are of the classes 0, 4 and 3: no other can be right
    assert all(accuracy <= 25 / 41 for accuracy in accuracies(tmp_path / "run").values())


def test_files_that_do_not_fit_are_refused_before_anything_is_written(tmp_path, tiny_file, config):
    with BetonReader(tiny_file) as reader:
        for name, label in (("flat", -1), ("more", 7)):
            with BetonWriter(tmp_path / f"{name}.beton", 5) as writer:
                for index in range(5):
                    writer.add_raw(reader[index][0], label=label)
    for name, reason in (("flat", "flat.beton has no labels"), ("more", "more.beton has class 7")):
        with pytest.raises(ValueError, match=reason):
            train(config, tiny_file, tmp_path / "run", val=tmp_path / f"{name}.beton")
    assert not (tmp_path / "run").exists()
