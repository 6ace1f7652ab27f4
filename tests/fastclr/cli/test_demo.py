"""fastclr demo: the whole way at a tiny size, and the user's mistakes."""

import html
import json
import re
from pathlib import Path
from signal import SIGTERM

import numpy as np
import pytest
from PIL import Image
from support.tiny_run import TINY_RECIPE

import fastclr.demo.run as demo_run
from fastclr.cli.main import main
from fastclr.recipes import load_recipe
from fastclr.train.loop import Outcome
from pipelines import BetonReader


@pytest.fixture
def recipe(tmp_path) -> Path:
    # "epochs" is meant for 4000 images and 2 minutes: 5 of them become 500 of 40 images, or --minutes' share of them
    path = tmp_path / "tiny.toml"
    path.write_text(TINY_RECIPE)
    return path


@pytest.fixture(autouse=True)
def _fast_machine(monkeypatch):
    """A machine on which all epochs fit into the time: how long a step takes here is not what is tested."""
    monkeypatch.setattr(demo_run, "step_seconds", lambda *_: 1e-6)


def demo(out: Path, recipe: Path, *more: str) -> int:
    return main(["demo", "--out", str(out), "--recipe", str(recipe), *more])


def write_photos(folder: Path, count: int, classes: tuple[str, ...]) -> Path:
    rng = np.random.default_rng(0)
    for number in range(count):
        path = (
            folder / classes[number % len(classes)] / f"{number}.png" if classes else folder / f"{number}.png"
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), np.uint8)).save(path)
    return folder


def test_the_whole_way_on_drawn_pictures(tmp_path, recipe, capsys):
    out = tmp_path / "demo"
    assert demo(out, recipe, "--images", "40", "--minutes", "0.012") == 0
    printed = capsys.readouterr().out
    for stage in (
        "time a few training steps",
        "draw",
        "convert",
        "preview",
        "evaluate random weights",
        "train",
        "evaluate trained weights",
    ):
        assert stage in printed
    with BetonReader(out / "train.beton") as train, BetonReader(out / "test.beton") as test:
        assert (len(train), len(test)) == (40, 10)
        assert np.bincount(train.labels).tolist() == [4] * 10
    resolved = load_recipe(str(out / "run" / "config.toml"))
    assert resolved.train.epochs == 3  # of 5·4000/40·0.012/2
    assert resolved.train.batch_size == 20
    records = [json.loads(line) for line in (out / "run" / "metrics.jsonl").read_text().splitlines()]
    assert records[-1]["step"] == len(records) == 40 * 3 // 20 + 1
    page = (out / "report.html").read_text()
    before, after = re.search(r"kNN ([\d.]+)% → ([\d.]+)%", printed).groups()
    assert f"{before} →</span> {after} %" in page
    assert "40 drawn pictures of 10 shapes" in page
    assert "3 epochs of SimCLR on 1 CPU thread" in page
    assert "the recipe's 3 epochs fit into 0.012 min" in html.unescape(page)
    assert Image.open(out / "views.png").width > 1000

    # again, with fewer pictures: the old ones must not mix in, nor the old run be in the way
    assert demo(out, recipe, "--images", "30", "--minutes", "0.002") == 0
    with BetonReader(out / "train.beton") as train:
        assert len(train) == 30


def test_random_weights_are_those_that_training_starts_from(tmp_path, recipe, monkeypatch):
    """With a learning rate of 0 nothing is learned: only the running statistics of the batch norms move."""
    recipe.write_text(TINY_RECIPE.replace("base_lr = 1.0", "base_lr = 0.0"))
    encoders = []
    extract = demo_run.extract

    def recording(model, *files):
        encoders.append({name: weight.clone() for name, weight in model.encoder.named_parameters()})
        return extract(model, *files)

    monkeypatch.setattr(demo_run, "extract", recording)
    assert demo(tmp_path / "demo", recipe, "--images", "20", "--minutes", "0.002", "--seed", "3") == 0
    before, after = encoders
    assert all((before[name] == after[name]).all() for name in before)


@pytest.mark.parametrize(
    ("step_s", "epochs", "said"),
    [
        (0.12, 2, "2 of the recipe's 3 epochs fit into 0.012 min"),  # 2 steps an epoch, in 90 % of 0.72 s
        (60.0, 1, "one epoch takes about 2.0 min, of 0.012 min that were wanted"),
    ],
)
def test_a_slow_machine_trains_fewer_epochs(tmp_path, recipe, monkeypatch, capsys, step_s, epochs, said):
    monkeypatch.setattr(demo_run, "step_seconds", lambda *_: step_s)
    out = tmp_path / "demo"
    assert demo(out, recipe, "--images", "40", "--minutes", "0.012") == 0
    assert said in capsys.readouterr().out
    assert load_recipe(str(out / "run" / "config.toml")).train.epochs == epochs


def test_a_folder_with_classes(tmp_path, recipe, capsys):
    photos = write_photos(tmp_path / "photos", 40, ("cats", "dogs"))
    (photos / "cats" / "broken.png").write_bytes(b"no picture")
    assert demo(tmp_path / "demo", recipe, "--data", str(photos), "--minutes", "0.003") == 0
    page = (tmp_path / "demo" / "report.html").read_text()
    assert "images of photos" in page
    assert "cats" in page
    assert "chance is 50 %" in page
    assert "PHOTOS" in page
    printed = capsys.readouterr().out
    assert "1 unreadable images left out" in printed
    assert "kNN" in printed
    assert not (tmp_path / "demo" / "drawn").exists()


def test_a_folder_without_classes(tmp_path, recipe, capsys):
    photos = write_photos(tmp_path / "photos", 30, ())
    assert demo(tmp_path / "demo", recipe, "--data", str(photos), "--minutes", "0.003") == 0
    printed = capsys.readouterr().out
    assert "no labels (one folder per class gives them), so no accuracy" in printed
    assert "kNN" not in printed
    page = (tmp_path / "demo" / "report.html").read_text()
    assert "not measured" in page
    assert "fastclr evaluate" not in page


def test_a_stopped_training_says_so(tmp_path, recipe, monkeypatch, capsys):
    monkeypatch.setattr(demo_run, "train", lambda *args: Outcome(3, 9, SIGTERM, 1.0, 0.0))
    assert demo(tmp_path / "demo", recipe, "--images", "20") == 128 + SIGTERM
    assert "stopped by SIGTERM" in capsys.readouterr().out
    assert not (tmp_path / "demo" / "report.html").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--minutes", "0"], "minutes is 0.0; it must be positive"),
        (["--images", "19"], "images is 19; the demo needs at least 20"),
        (["--data", "nowhere"], "nowhere is not a folder"),
        (["--recipe", "no-such"], "no recipe 'no-such'"),
        (["--seed", "-1"], "seed is -1"),
    ],
)
def test_settings_out_of_range(tmp_path, recipe, capsys, more, message):
    assert demo(tmp_path / "demo", recipe, *more) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "demo" / "train.beton").exists()


def test_an_output_folder_that_is_a_file(tmp_path, recipe, capsys):
    (tmp_path / "file").write_text("")
    assert demo(tmp_path / "file", recipe, "--images", "20") == 2
    assert "file" in capsys.readouterr().err
