"""docs/encoders.md does what it says: its commands and its code run, in a folder with small runs and files."""

import re
import shlex
from pathlib import Path

import pytest
import torch
from support.other_encoders import stir, torchvision_resnet, with_prefix

from fastclr.cli.main import main
from fastclr.model import resnet
from fastclr.train.checkpoint import export_encoder
from pipelines.convert import convert, open_source

PAGE = (Path(__file__).parents[1] / "docs" / "encoders.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^    (fastclr .+)$", PAGE, re.M)
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.S)
SMALL = ["--device", "cpu", "--threads", "1"]


def write_run(folder: Path, stem: str, size: int) -> None:
    kwargs = {"depth": 18, "width": 1.0, "stem": stem, "sk_ratio": 0.0}
    folder.mkdir(parents=True)
    meta = {"encoder": "resnet", "kwargs": kwargs, "size": size, "mean": [0.5] * 3, "std": [0.25] * 3}
    export_encoder(folder / "encoder.safetensors", stir(resnet(**kwargs)), meta)


@pytest.fixture(scope="module")
def folder(tiny_photos, tmp_path_factory) -> Path:
    """What the page presupposes."""
    folder = tmp_path_factory.mktemp("docs-encoders")
    torch.manual_seed(0)
    write_run(folder / "runs" / "photos", "imagenet", 64)
    write_run(folder / "runs" / "small", "cifar", 32)
    for name in ("photos", "train", "test"):
        convert(open_source([str(tiny_photos)]), folder / f"{name}.beton", workers=1)
    state = {**with_prefix("module.encoder_q.", torchvision_resnet()), "module.queue": torch.zeros(128, 8)}
    torch.save({"state_dict": state}, folder / "moco_v2_800ep_pretrain.pth.tar")
    return folder


def test_the_page_has_these():
    assert len(COMMANDS) == 11
    assert len(BLOCKS) == 4


@pytest.mark.slow
def test_commands_and_code(folder, monkeypatch, require_package, capsys):
    """The commands first: the code reads what they write."""
    for package in ("timm", "onnxruntime", "pyarrow"):
        require_package(package)
    monkeypatch.chdir(folder)
    before = set(folder.iterdir())
    for command in COMMANDS:
        _, *arguments = shlex.split(command)
        more = SMALL if arguments[0] in ("evaluate", "embed") else []
        more = [*more, "--size", "64"] if "moco" in command else more
        assert main([*arguments, *more]) == 0, command
    written = {path.name for path in set(folder.iterdir()) - before}
    assert written == {
        "features.npz",
        "features.parquet",
        "photos.pth",
        "photos.safetensors",
        "photos.onnx",
        "photos-uint8.onnx",
        "photos.pt",
        "photos-resnet18",
        "moco_v2_800ep_pretrain.pth.tar.evaluate.json",
        "moco.npz",
        "moco-timm.pth",
    }
    for block in BLOCKS:
        exec(compile(block, "docs/encoders.md", "exec"), {})


@pytest.mark.slow
def test_a_cifar_stem_by_hand_gives_equal_features(folder, monkeypatch, require_package):
    require_package("timm")
    monkeypatch.chdir(folder)
    (block,) = (block for block in BLOCKS if "maxpool" in block)
    names: dict = {}
    exec(block + "    models.append(model.eval())\n", {"models": (models := [])} | names)
    from fastclr import load_encoder

    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        expected = load_encoder("runs/small")[0](images)
        assert len(models) == 2
        for model in models:
            torch.testing.assert_close(model(images), expected, rtol=0, atol=1e-6)
