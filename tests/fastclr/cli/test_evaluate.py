"""fastclr evaluate: the numbers of evaluate.json against a second way to them, and the user's mistakes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from fastclr.cli.main import main
from fastclr.evaluate import features as features_module
from fastclr.evaluate import knn_accuracy, linear_probe
from fastclr.model import resnet
from fastclr.train.checkpoint import export_encoder, load_encoder
from pipelines import BetonReader
from pipelines.beton import BetonWriter

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)


COLORS = np.random.default_rng(0).uniform(60, 195, (5, 3))


def write_colors(path: Path, num_images: int, seed: int) -> Path:
    """Raw 16 × 16 images of five classes, each a color under much noise: random crops keep the class."""
    rng = np.random.default_rng(seed)
    with BetonWriter(path, num_images) as writer:
        for index in range(num_images):
            pixels = COLORS[index % 5] + rng.normal(0, 25, 3) + rng.normal(0, 30, (16, 16, 3))
            writer.add_raw(pixels.clip(0, 255).astype(np.uint8), label=index % 5)
    return path


@pytest.fixture(scope="module")
def train_file(tmp_path_factory) -> Path:
    return write_colors(tmp_path_factory.mktemp("evaluate") / "train.beton", 79, seed=1)


@pytest.fixture(scope="module")
def held_out_file(tmp_path_factory) -> Path:
    return write_colors(tmp_path_factory.mktemp("evaluate") / "test.beton", 93, seed=2)


@pytest.fixture
def run(tmp_path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    torch.manual_seed(0)
    encoder = resnet(10, 0.125, stem="cifar")
    encoder.bn1.running_mean.normal_(std=0.1)  # a wrong mode or a drift would show
    meta = {
        "depth": 10,
        "width": 0.125,
        "stem": "cifar",
        "sk_ratio": 0.0,
        "size": 16,
        "mean": MEAN,
        "std": STD,
    }
    export_encoder(folder / "encoder.safetensors", encoder, {**meta, "step": 20})
    return folder


def evaluate(run: Path, train: Path, test: Path, *more: str) -> int:
    return main(["evaluate", str(run), "--train", str(train), "--test", str(test), "--device", "cpu", *more])


def by_hand(run: Path, file: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Features without a loader: the images have the size of a view, so its centre crop is the image."""
    encoder, _ = load_encoder(run)
    with BetonReader(file) as reader:
        pixels = (
            torch.from_numpy(np.stack([reader[i][0] for i in range(len(reader))])).permute(0, 3, 1, 2) / 255
        )
        images = (pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
        with torch.no_grad():
            return encoder(images), torch.from_numpy(reader.labels.copy())


def test_knn_of_the_command_is_knn_by_hand(run, train_file, held_out_file, capsys):
    weights = (run / "encoder.safetensors").read_bytes()
    assert (
        evaluate(run, train_file, held_out_file, "--precision", "float32", "--k", "9", "--epochs", "0") == 0
    )
    record = json.loads((run / "evaluate.json").read_text())
    expected = knn_accuracy(*by_hand(run, train_file), *by_hand(run, held_out_file), k=9)
    assert record["knn"] == {
        "top1": expected,
        "k": 9,
        "temperature": 0.1,
        "seconds": record["knn"]["seconds"],
    }
    assert 0.3 < expected < 1
    assert record["num_classes"] == 5
    assert record["features"]["width"] == 64
    assert (record["train"]["samples"], record["test"]["samples"]) == (79, 93)
    assert (record["encoder"]["step"], record["precision"]) == (20, "float32")
    assert "linear" not in record
    assert f"{expected:.2%}" in capsys.readouterr().out
    assert (run / "encoder.safetensors").read_bytes() == weights


def test_linear_probe_and_logistic_regression(run, train_file, held_out_file, capsys):
    more = ("--epochs", "30", "--passes", "2", "--base-lr", "3", "--batch-size", "16", "--logistic")
    assert evaluate(run, train_file, held_out_file, *more) == 0
    record = json.loads((run / "evaluate.json").read_text())
    # the same protocol on the images as they are: crops make it harder, but not by much
    plain = linear_probe(
        *by_hand(run, train_file), *by_hand(run, held_out_file), epochs=30, base_lr=3, batch_size=16
    )
    assert abs(record["linear"]["top1"] - plain) < 0.25
    assert min(record["linear"]["top1"], record["logistic"]["top1"]) > 0.5  # chance is 0.2
    assert record["linear"]["views"] == "2 passes in turn"
    printed = capsys.readouterr().out
    assert f"{record['linear']['top1']:.2%}" in printed
    assert f"{record['logistic']['top1']:.2%}" in printed
    assert "k = 200 capped at the 79 training samples" in printed


def test_new_views_runs_the_encoder_in_every_epoch(run, train_file, held_out_file, monkeypatch):
    images = 0
    forward = features_module.feature_batches

    def counting(*args, **kwargs):
        nonlocal images
        for h, labels in forward(*args, **kwargs):
            images += len(labels)
            yield h, labels

    monkeypatch.setattr("fastclr.evaluate.protocol.feature_batches", counting)
    more = ("--epochs", "12", "--base-lr", "3", "--batch-size", "32", "--new-views")
    assert evaluate(run, train_file, held_out_file, *more) == 0
    assert images == 12 * 79  # the short last batch too
    record = json.loads((run / "evaluate.json").read_text())
    assert record["linear"]["views"] == "new in every epoch"
    assert record["linear"]["top1"] > 0.3


def test_two_evaluations_agree(run, train_file, held_out_file):
    first, second = ({}, {})
    for record in (first, second):
        assert (
            evaluate(run, train_file, held_out_file, "--epochs", "5", "--passes", "2", "--base-lr", "3") == 0
        )
        record.update(json.loads((run / "evaluate.json").read_text()))
    assert (first["knn"]["top1"], first["linear"]["top1"]) == (
        second["knn"]["top1"],
        second["linear"]["top1"],
    )


def test_the_seed_chooses_the_crops(run, train_file, held_out_file, monkeypatch):
    crops = []

    def seen(train_features: torch.Tensor, *args, **kwargs) -> float:
        crops.append(train_features)
        return 0.5

    monkeypatch.setattr("fastclr.evaluate.protocol.linear_probe", seen)
    knn = set()
    for seed in ("0", "0", "1"):
        assert evaluate(run, train_file, held_out_file, "--passes", "2", "--seed", seed) == 0
        knn.add(json.loads((run / "evaluate.json").read_text())["knn"]["top1"])
    assert torch.equal(crops[0], crops[1])
    for number in range(2):
        assert (crops[0][number] != crops[2][number]).any(1).sum() > 70, "of 79 images"
    assert len(knn) == 1, "the centre is no matter of chance"


def test_unlabelled_samples_are_left_out(run, train_file, held_out_file, tmp_path, capsys):
    with BetonReader(train_file) as reader, BetonWriter(tmp_path / "part.beton", len(reader)) as writer:
        for i in range(len(reader)):
            pixels, label = reader[i]
            writer.add_raw(pixels, label=label if i % 2 else -1)
    assert evaluate(run, tmp_path / "part.beton", held_out_file, "--epochs", "0") == 0
    assert json.loads((run / "evaluate.json").read_text())["features"]["train_samples"] == 39
    assert "40 of 79 samples have no label" in " ".join(capsys.readouterr().out.split())


def rewritten(source: Path, target: Path, label, names: list[str] | None = None) -> Path:
    with BetonReader(source) as reader, BetonWriter(target, len(reader)) as writer:
        for i in range(len(reader)):
            writer.add_raw(reader[i][0], label=label(reader[i][1]))
    if names:
        sidecar = {"format": "fastclr side-car 1", "file_bytes": target.stat().st_size, "class_names": names}
        target.with_suffix(".json").write_text(json.dumps(sidecar))
    return target


@pytest.mark.parametrize("which", [0, 1])
def test_a_file_without_labels_is_refused(run, train_file, held_out_file, tmp_path, capsys, which):
    files = [train_file, held_out_file]
    files[which] = rewritten(files[which], tmp_path / "flat.beton", lambda label: -1)
    assert evaluate(run, *files) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "flat.beton has no labels" in error
    assert "one sub-folder per class" in error
    assert not (run / "evaluate.json").exists()


def test_files_of_other_classes_are_refused(run, train_file, held_out_file, tmp_path, capsys):
    more = rewritten(held_out_file, tmp_path / "more.beton", lambda label: label + 4)
    assert evaluate(run, train_file, more) == 2
    assert "has class 8" in capsys.readouterr().err
    cats = rewritten(train_file, tmp_path / "cats.beton", lambda label: label, ["a", "cat", "c", "d", "e"])
    dogs = rewritten(held_out_file, tmp_path / "dogs.beton", lambda label: label, ["a", "dog", "c", "d", "e"])
    assert evaluate(run, cats, dogs) == 2
    assert "number 1 is 'dog' and 'cat'" in capsys.readouterr().err


NO_PROBE = ("--epochs", "0")


def test_class_names_are_compared_through_links(run, train_file, held_out_file, tmp_path, capsys):
    (tmp_path / "store").mkdir()
    cats = rewritten(train_file, tmp_path / "store" / "cats.beton", lambda label: label, list("abcde"))
    dogs = rewritten(held_out_file, tmp_path / "store" / "dogs.beton", lambda label: label, list("abxde"))
    for name, file in (("train.beton", cats), ("test.beton", dogs)):
        (tmp_path / name).symlink_to(file)
    assert evaluate(run, tmp_path / "train.beton", tmp_path / "test.beton") == 2
    assert "number 2 is 'x' and 'c'" in capsys.readouterr().err


def test_an_evaluation_without_class_names_says_so(run, train_file, held_out_file, tmp_path, capsys):
    named = rewritten(train_file, tmp_path / "named.beton", lambda label: label, list("abcde"))
    for train, count in ((train_file, "have"), (named, "has")):
        assert evaluate(run, train, held_out_file, *NO_PROBE) == 0
        said = " ".join(capsys.readouterr().out.split())
        assert f"{held_out_file} {count} no class names" in said
    test = rewritten(held_out_file, tmp_path / "test.beton", lambda label: label, list("abcde"))
    assert evaluate(run, named, test, *NO_PROBE) == 0
    assert "no class names" not in capsys.readouterr().out


def test_one_class_says_nothing_of_the_encoder(run, train_file, held_out_file, tmp_path, capsys):
    files = [rewritten(file, tmp_path / file.name, lambda label: 0) for file in (train_file, held_out_file)]
    assert evaluate(run, *files, *NO_PROBE) == 0
    assert "train.beton has only one class" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("which", [0, 1])
def test_labels_of_ten_digits_get_one_line(run, train_file, held_out_file, tmp_path, capsys, which):
    """A vote for each of two billion classes would take 2.4 TB."""
    files = [train_file, held_out_file]
    files[which] = rewritten(files[which], tmp_path / "ids.beton", lambda label: 2_000_000_000 + label)
    assert evaluate(run, *files) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "ids.beton" in error
    assert "200000000" in error


def test_a_path_in_brackets_is_printed_as_it_is(run, train_file, held_out_file, tmp_path, capsys):
    folder = tmp_path / "run[" / "bold][1]"
    folder.parent.mkdir()
    run.rename(folder)
    assert evaluate(folder, train_file, held_out_file, *NO_PROBE) == 0
    assert f"written to {folder / 'evaluate.json'}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--k", "0"], "k is 0"),
        (["--passes", "0"], "passes is 0"),
        (["--temperature", "-1"], "temperature is -1.0"),
        (["--base-lr", "nan"], "base_lr is nan; it must be finite and above 0"),
        (["--base-lr", "0"], "base_lr is 0.0; it must be finite and above 0"),
        (["--weight-decay", "inf"], "weight_decay is inf; it must be finite and at least 0"),
        (["--weight-decay", "-1e-6"], "weight_decay is -1e-06; it must be finite and at least 0"),
        (["--seed", "-1"], "seed is -1; it must be 0 to 2⁶⁴ − 1"),
        (["--seed", str(1 << 64)], "seed is 18446744073709551616; it must be 0 to"),
        (["--device", "tpu"], "tpu"),
    ],
)
def test_settings_out_of_range(run, train_file, held_out_file, capsys, more, message):
    assert evaluate(run, train_file, held_out_file, *more) == 2
    assert message in capsys.readouterr().err


def test_missing_and_corrupt_runs(run, train_file, held_out_file, tmp_path, capsys):
    assert evaluate(tmp_path / "nowhere", train_file, held_out_file) == 2
    assert "nowhere" in capsys.readouterr().err
    assert evaluate(run, train_file, tmp_path / "no.beton") == 2
    assert "no.beton" in capsys.readouterr().err
    path = run / "encoder.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    assert evaluate(run, train_file, held_out_file) == 2
    error = capsys.readouterr().err
    assert "encoder.safetensors" in error
    assert error.count("\n") == 1
