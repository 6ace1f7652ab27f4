"""A ViT of timm and a network of torchvision: trained, stopped, continued, exported and evaluated."""

import dataclasses
import json
import os
import signal
import warnings

import pytest
import torch

from fastclr.cli.main import main
from fastclr.config import IgnoredSetting, ModelConfig
from fastclr.recipes import load_recipe
from fastclr.train.checkpoint import load_checkpoint, load_encoder
from fastclr.train.pretrain import train
from fastclr.train.sinks import read_metrics


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size"), [("timm:vit_tiny_patch16_224", 16), ("torchvision:mobilenet_v3_small", 32)]
)
def test_the_whole_way(tmp_path, tiny_file, tiny_config, require_package, name, size):
    require_package("timm")
    config = dataclasses.replace(
        tiny_config,
        views=dataclasses.replace(tiny_config.views, size=size),
        model=ModelConfig(encoder=name, head_layers=2, proj_dim=16),
        train=dataclasses.replace(tiny_config.train, epochs=1),
    )

    def stop(record: dict) -> None:
        if record["step"] == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    train(config, tiny_file, tmp_path / "straight")
    assert train(config, tiny_file, tmp_path / "stopped", sinks=[stop]).step < 4
    assert train(config, tiny_file, tmp_path / "stopped").step == 4
    one, other = (
        load_checkpoint(tmp_path / folder / "last.pt")["model"] for folder in ("straight", "stopped")
    )
    # a ViT's last bits differed in some runs on a busy machine, for a cause that is not found yet
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if name.startswith("timm:") else {"rtol": 0, "atol": 0}
    for key, tensor in one.items():
        torch.testing.assert_close(
            tensor, other[key], **tolerance, msg=lambda text, key=key: f"{key}: {text}"
        )
    straight, stopped = ([r["loss"] for r in read_metrics(tmp_path / f)] for f in ("straight", "stopped"))
    assert stopped == pytest.approx(straight, rel=tolerance["rtol"], abs=0)

    encoder, meta = load_encoder(tmp_path / "straight")
    assert (meta["encoder"], meta["kwargs"]) == (name, {"size": size})
    for key, tensor in encoder.state_dict().items():
        assert torch.equal(tensor, one[f"encoder.{key}"]), key
    files = ["--train", str(tiny_file), "--test", str(tiny_file)]
    assert main(["evaluate", str(tmp_path / "straight"), *files, "--epochs", "0", "--device", "cpu"]) == 0
    record = json.loads((tmp_path / "straight" / "evaluate.json").read_text())
    assert record["features"]["width"] == encoder.num_features


def test_settings_of_a_resnet_are_ignored_with_a_warning(recwarn):
    ModelConfig(encoder="timm:vit_tiny_patch16_224").warn_of_ignored()
    ModelConfig(depth=18, width=0.5, stem="cifar").warn_of_ignored()
    assert not [warning for warning in recwarn if issubclass(warning.category, IgnoredSetting)]
    given = {"depth": 18, "width": 0.5, "stem": "cifar", "sk_ratio": 0.0625}
    for name, value in given.items():
        model = dataclasses.replace(ModelConfig(encoder="torchvision:resnet18"), **{name: value})
        with pytest.warns(IgnoredSetting, match=f"model.{name} {value!r} has no effect"):
            model.warn_of_ignored()
    with pytest.warns(IgnoredSetting, match="model.depth 18, model.width 0.5, model.stem"):
        ModelConfig(encoder="torchvision:resnet18", **given).warn_of_ignored()


def test_a_run_warns_once_of_what_the_user_gave(tmp_path, tiny_file, tiny_config, recwarn, monkeypatch):
    """Not of the stem that `auto` means for a ResNet, when the run folder is the recipe."""
    # a command sets how warnings look
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    model = ModelConfig(encoder="torchvision:mobilenet_v3_small", head_layers=2, proj_dim=16)
    # in bfloat16 torch's gradient of its last maps, of one pixel, is wrong now and then; see STEM_STRIDES in build.py
    train_config = dataclasses.replace(tiny_config.train, epochs=1, precision="float32")
    config = dataclasses.replace(tiny_config, model=model, train=train_config)
    train(config, tiny_file, tmp_path / "run")
    again = load_recipe(str(tmp_path / "run"))
    assert again.model == model
    train(again, tiny_file, tmp_path / "run")
    assert not [warning for warning in recwarn if issubclass(warning.category, IgnoredSetting)]
    arguments = ["train", str(tmp_path / "run"), str(tiny_file), "--out", str(tmp_path / "other")]
    assert main([*arguments, "--model.depth", "18"]) == 0
    (warning,) = (warning for warning in recwarn if issubclass(warning.category, IgnoredSetting))
    shown = warnings.formatwarning(warning.message, warning.category, "a.py", 1)
    assert shown.startswith("fastclr: model.depth 18 has no effect with model.encoder")
    assert shown.count("\n") == 1
