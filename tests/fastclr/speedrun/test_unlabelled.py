"""What the training of a speedrun sees: no label, no class name, on any engine."""

import json
import pickle

import pytest
from support.tiny_run import write_tiny_file

from fastclr.speedrun import worker
from fastclr.speedrun.unlabelled import UnlabelledReader, check_unlabelled, num_labels
from fastclr.speedrun.worker import Job, train_job
from pipelines import BetonReader, ViewLoader
from pipelines.convert import convert, open_source


@pytest.mark.parametrize("engine", ["native", "resident", "torchvision"])
def test_batches_have_no_labels(tmp_path, engine):
    file = write_tiny_file(tmp_path / "train.beton")
    with BetonReader(file) as labelled, UnlabelledReader(file) as reader:
        assert (num_labels(labelled), num_labels(reader)) == (79, 0)
        assert reader.fingerprint == labelled.fingerprint
        with ViewLoader(reader, 20, size=16, engine=engine, num_threads=1) as loader:
            batches = list(loader)
        with ViewLoader(labelled, 20, size=16, engine=engine, num_threads=1) as loader:
            others = list(loader)
    assert len(batches) == 3
    for batch, other in zip(batches, others, strict=True):
        assert batch.labels.tolist() == [-1] * 20
        assert min(other.labels.tolist()) >= 0
        assert (batch.views == other.views).all()


def test_neither_names_nor_a_pickled_reader_tell_them(tiny_photos, tmp_path):
    convert(open_source([str(tiny_photos)]), tmp_path / "photos.beton")
    with BetonReader(tmp_path / "photos.beton") as labelled:
        assert labelled.class_names == ["class-0", "class-1", "class-2", "class-3"]
        with pytest.raises(ValueError, match=r"has labels \(40 of 40"):
            check_unlabelled(labelled)
    with UnlabelledReader(tmp_path / "photos.beton") as reader:
        check_unlabelled(reader)
        assert (reader.class_names, reader.sidecar, reader.num_classes) == (None, None, 0)
        with pickle.loads(pickle.dumps(reader)) as copy:
            check_unlabelled(copy)
        with pytest.raises(ValueError, match="read-only"):
            reader.labels[0] = 3


def test_a_training_process_refuses_labels(tmp_path, monkeypatch):
    """Should the reader ever give labels, the process ends before it trains."""
    file = write_tiny_file(tmp_path / "train.beton")
    monkeypatch.setattr("fastclr.speedrun.unlabelled.UnlabelledReader", BetonReader)
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("[train]\nepochs = 10\n")
    job = Job("train", str(recipe), 0, [str(file)], [], str(tmp_path / "run"), str(tmp_path / "result.json"))
    with pytest.raises(ValueError, match="must not see"):
        train_job(job)
    assert not (tmp_path / "run").exists()


def test_a_job_survives_its_file(tmp_path):
    job = Job("train", "r.toml", 3, ["a.beton"], [], "run", "result.json", warm_up=True, metric="linear")
    path = job.write(tmp_path / "job.json")
    assert worker.Job(**json.loads(path.read_text())) == job
