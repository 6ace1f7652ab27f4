"""fastclr evaluate on another project's checkpoint: the numbers are those of a run with the same weights."""

import json
from pathlib import Path

import pytest
import torch
from support.other_encoders import stir
from support.tiny_run import write_tiny_file

from fastclr.cli.main import main
from fastclr.model import resnet
from fastclr.train.checkpoint import export_encoder

IMAGES = ("--size", "16", "--mean", "0.5", "0.4", "0.3", "--std", "0.2", "0.3", "0.25")


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("evaluate-others")
    return write_tiny_file(folder / "train.beton"), write_tiny_file(folder / "test.beton", 41, seed=0)


def evaluate(source: Path | str, files: tuple[Path, Path], *more: str) -> int:
    train, test = map(str, files)
    options = ("--epochs", "0", "--k", "5", "--device", "cpu", "--precision", "float32")
    return main(["evaluate", str(source), "--train", train, "--test", test, *options, *more])


def test_a_checkpoint_in_place_of_a_run(files, tmp_path, capsys):
    torch.manual_seed(0)
    encoder = stir(resnet(10, 0.125, stem="cifar"))
    run = tmp_path / "run"
    run.mkdir()
    meta = {"encoder": "resnet", "kwargs": {"depth": 10, "width": 0.125, "stem": "cifar", "sk_ratio": 0.0}}
    images = {"size": 16, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.25]}
    export_encoder(run / "encoder.safetensors", encoder, {**meta, **images})
    state = {f"module.backbone.{name}": tensor for name, tensor in encoder.state_dict().items()}
    state["module.fc.weight"] = torch.zeros(3, 64)
    torch.save({"state_dict": state}, tmp_path / "theirs.ckpt")

    assert evaluate(run, files) == 0
    capsys.readouterr()
    assert evaluate(tmp_path / "theirs.ckpt", files, *IMAGES) == 0
    said = capsys.readouterr().out
    assert "dropped: fc (1 tensor)" in said
    assert "assumed" not in said
    ours = json.loads((run / "evaluate.json").read_text())
    theirs = json.loads((tmp_path / "theirs.ckpt.evaluate.json").read_text())
    assert theirs["knn"]["top1"] == ours["knn"]["top1"]
    assert ours["knn"]["top1"] > 0.2
    assert theirs["encoder"]["source"] == str(tmp_path / "theirs.ckpt")
    assert {key: theirs["encoder"][key] for key in images} == images


def test_settings_of_the_images_of_a_run(files, tmp_path):
    """What is given wins over what the run says."""
    meta = {"encoder": "resnet", "kwargs": {"depth": 10, "width": 0.125, "stem": "cifar", "sk_ratio": 0.0}}
    images = {"size": 16, "mean": [0.5] * 3, "std": [0.25] * 3}
    export_encoder(tmp_path / "encoder.safetensors", resnet(10, 0.125, stem="cifar"), {**meta, **images})
    assert evaluate(tmp_path, files, "--size", "24") == 0
    record = json.loads((tmp_path / "evaluate.json").read_text())
    assert (record["size"], record["mean"]) == (24, [0.5] * 3)
    assert {key: record["encoder"][key] for key in images} == images
    assert "replaced" not in record["encoder"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--size", "0"), "--size is 0"),
        (("--std", "0", "1", "1"), "std is"),
        (("--mean", "nan", "1", "1"), "mean is"),
    ],
)
def test_settings_out_of_range(files, tmp_path, capsys, more, message):
    torch.save(resnet(10, 0.125, stem="cifar").state_dict(), tmp_path / "a.pth")
    assert evaluate(tmp_path / "a.pth", files, *more) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_what_is_no_encoder_gets_one_line(files, tmp_path, capsys):
    torch.save({"head.weight": torch.zeros(3)}, tmp_path / "head.pth")
    for source in (tmp_path / "head.pth", files[0], "torchvision:resnet19", tmp_path / "none.pth"):
        assert evaluate(source, files) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert Path(source).name.partition(":")[0] in error
        assert not list(tmp_path.glob("*.json"))
