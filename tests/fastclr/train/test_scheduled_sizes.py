"""What depends on the sizes of a schedule: compiling, capturing, memory, the encoder's file, preview, evaluations."""

import dataclasses
import json
from functools import partial

import pytest
import torch
from support.scheduled_run import changed, write_scheduled_recipe
from support.tiny_run import write_tiny_file

from fastclr.cli.main import main
from fastclr.config import Config, ModelConfig
from fastclr.model import resnet
from fastclr.recipes import load_recipe
from fastclr.schedule import Scheduled
from fastclr.train.build import check_graph, check_sizes, resolve, view_sizes
from fastclr.train.checkpoint import load_encoder
from fastclr.train.distributed import Ranks
from fastclr.train.pretrain import train
from fastclr.train.sinks import read_metrics
from pipelines import BetonReader, ViewSpec

CPU = torch.device("cpu")


@pytest.fixture
def config(tmp_path) -> Config:
    return load_recipe(str(write_scheduled_recipe(tmp_path / "scheduled.toml")))


def test_what_a_captured_step_cannot_do():
    cuda, steps = torch.device("cuda", 0), Scheduled("loss.temperature", (0.0, 0.5), (0.1, 0.2))
    config = changed(Config(schedule=(steps,)), "train", graph=True)
    check_graph(config, cuda, Ranks())
    linear = dataclasses.replace(config, schedule=(dataclasses.replace(steps, kind="linear"),))
    with pytest.raises(
        ValueError, match=r"train.graph needs settings of the loss scheduled in steps; leave it out"
    ):
        check_graph(linear, cuda, Ranks())


def test_too_many_sizes_to_compile(config):
    linear = Scheduled("views.size", (0.0, 1.0), (8, 16), "linear")
    config = dataclasses.replace(changed(config, "train", epochs=40, compile=True), schedule=(linear,))
    assert len(view_sizes(config, 79)) == 9
    with pytest.raises(
        ValueError, match=r"the schedule has 9 sizes of views, and train.compile .* at most 8 times"
    ):
        check_sizes(config, resnet(10, 0.125, stem="cifar"), 79)
    even = dataclasses.replace(config, schedule=(dataclasses.replace(linear, multiple_of=2),))
    check_sizes(even, resnet(10, 0.125, stem="cifar"), 79)
    with pytest.raises(ValueError, match=r"has 5 sizes"):
        check_sizes(changed(even, "train", micro_batch=10), resnet(10, 0.125, stem="cifar"), 79)


def record_pixels(pixels: list[int], _: torch.nn.Module, inputs: tuple[torch.Tensor]) -> None:
    pixels.append(inputs[0].shape[-1])


def test_one_pixel_in_bfloat16_is_refused(tmp_path, tiny_file, config):
    """The stems divide the size by 1, 2 and 4, and the stages before the last by 4."""
    for stem, size in (("cifar", 4), ("stride2", 8), ("imagenet", 16)):
        half = changed(changed(config, "model", stem=stem), "train", precision="bfloat16", device="cpu")
        encoder = resnet(10, 0.125, stem=stem)
        for smallest, too_small in ((size, True), (size + 1, False)):
            sizes = Scheduled("views.size", (0.0, 0.5), (smallest, 40))
            each = dataclasses.replace(half, views=ViewSpec.simclr(40), schedule=(sizes,))
            pixels: list[int] = []
            hook = partial(record_pixels, pixels)
            handle = encoder.layer4.register_forward_pre_hook(hook)
            encoder.eval()(torch.zeros(1, 3, smallest, smallest))
            handle.remove()
            assert (pixels == [1]) == too_small
            check_sizes(changed(each, "train", precision="float32"), encoder, 79)
            if too_small:
                with pytest.raises(
                    ValueError, match=f"views of {size} px leave one pixel .* train.precision float32"
                ):
                    check_sizes(each, encoder, 79)
            else:
                check_sizes(each, encoder, 79)


def test_the_encoder_is_that_of_the_largest_size(tmp_path, tiny_file, config, monkeypatch):
    """The stem of `auto`, the memory and the metadata, also where the sizes fall."""
    schedule = (Scheduled("views.size", (0.0, 0.5), (40, 24)),)
    config = dataclasses.replace(config, views=ViewSpec.simclr(40), schedule=schedule)
    with BetonReader(tiny_file) as reader:
        resolved = resolve(config, reader, CPU)
    assert resolved.model.stem == "imagenet"
    seen = []
    monkeypatch.setattr(
        "fastclr.train.build.activation_bytes", lambda model, size, half: seen.append(size) or 1
    )
    train(changed(config, "train", epochs=1), tiny_file, tmp_path / "run")
    assert seen == [40]
    encoder, meta = load_encoder(tmp_path / "run")
    assert (meta["size"], meta["kwargs"]["stem"]) == (40, "imagenet")
    assert encoder(torch.zeros(1, 3, 40, 40)).shape == (1, encoder.num_features)


def test_an_encoder_of_one_size_is_refused_at_the_start(tmp_path, tiny_file, config, require_package):
    require_package("timm")
    vit = dataclasses.replace(config, model=ModelConfig(encoder="timm:vit_tiny_patch16_224", head_layers=2))
    with pytest.raises(ValueError, match=r"timm:vit_tiny_patch16_224 takes no images of 8 px"):
        train(vit, tiny_file, tmp_path / "run")
    unscheduled = changed(dataclasses.replace(vit, schedule=()), "train", eval_size=32)
    with pytest.raises(ValueError, match=r"takes no images of 32 px"):
        train(unscheduled, tiny_file, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_run_says_its_schedule(tmp_path, tiny_file, config, capsys):
    short = changed(config, "train", precision="float32", eval_size=20)
    train(short, tiny_file, tmp_path / "run")
    assert capsys.readouterr().out.splitlines()[0] == (
        "79 images, 5 epochs, 20 steps of 20; ResNet-10 ×0.125 at 8, 12, 16 px in float32 on cpu; "
        "engine resident, 1 loader thread; schedule: loss.temperature 0.1 at 0 % to 0.3 at 100 %; "
        "views.jitter_strength 0 at 0 % to 1 at 100 %; views.size 8, 12 from 30 % on, 16 from 60 % on; "
        "evaluated at 20 px"
    )


def test_the_preview_shows_the_views_of_an_epoch(tmp_path, tiny_file, config, capsys, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "fastclr.preview.draw_samples", lambda reader, specs, **_: seen.append(specs[0].size) or [None]
    )
    monkeypatch.setattr("fastclr.preview.contact_sheet", lambda samples, title: seen.append(title) or Sheet)
    monkeypatch.setattr("fastclr.preview.save_picture", lambda *_: None)
    Sheet = type("Sheet", (), {"width": 1, "height": 1})
    recipe = ["--recipe", str(tmp_path / "scheduled.toml"), "--out", str(tmp_path / "v.png")]
    for epoch in (1, 2):
        assert main(["preview", str(tiny_file), *recipe, "--epoch", str(epoch)]) == 0
    assert [each for each in seen if isinstance(each, int)] == [8, 12]
    assert "views of 12 px, seed 0, epoch 2" in seen[-1]
    out = capsys.readouterr().out
    assert "schedule: loss.temperature" in out and "views of 8, 12, 16 px in the whole run" in out


def test_the_size_of_evaluations(tmp_path, tiny_file, tiny_config):
    """A recipe's constant reaches metadata, online kNN and `evaluate`; `--size` overrides it."""
    val = write_tiny_file(tmp_path / "val.beton", 41, seed=1)
    config = changed(tiny_config, "train", epochs=1, eval_size=24, eval_epochs=1, precision="float32")
    folder = tmp_path / "run"
    train(config, tiny_file, folder, val=val)
    assert load_encoder(folder)[1]["size"] == 24
    assert load_recipe(str(folder)).train.eval_size == 24

    def evaluated(*more: str) -> dict:
        files = ["--train", str(tiny_file), "--test", str(val), "--epochs", "0", "--precision", "float32"]
        assert main(["evaluate", str(folder), *files, "--device", "cpu", *more]) == 0
        return json.loads((folder / "evaluate.json").read_text())

    default = evaluated()
    assert default["size"] == 24
    assert default["knn"]["top1"] == read_metrics(folder)[-1]["val_knn"]
    other = evaluated("--size", "16")
    assert (other["size"], other["encoder"]["size"]) == (16, 24)
    trained_size = tmp_path / "default"
    train(changed(config, "train", eval_size=None), tiny_file, trained_size, val=val)
    assert other["knn"]["top1"] == read_metrics(trained_size)[-1]["val_knn"]
    # it is no part of the identity: the same run, whose weights do not depend on it
    assert train(changed(config, "train", eval_size=None), tiny_file, folder).first_step == 4
    for size in ("0", "5000"):
        assert main(["evaluate", str(folder), "--train", "a", "--test", "b", "--size", size]) == 2
    with pytest.raises(ValueError, match=r"train.eval_size is 0"):
        changed(config, "train", eval_size=0)
