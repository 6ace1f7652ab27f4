"""Commands on a file of FFCV's own writer whose fields have other names: --image-field and --label-field."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.tiny_run import write_tiny_recipe

from benchmarks.loaders.bench import Options, _cases
from benchmarks.loaders.report import LoaderSettings
from benchmarks.loaders.without_markers import without_markers
from fastclr.arguments import parse
from fastclr.cli.main import main
from fastclr.recipes import load_recipe
from fastclr.train.checkpoint import load_checkpoint
from pipelines.beton import BetonReader

NUM_IMAGES = 60
CHOSEN = ["--image-field", "right", "--label-field", "fine"]


class Pairs:
    """Images of 16 pixels in pairs; the left one and `coarse` are what is read when no names are given."""

    def __len__(self) -> int:
        return NUM_IMAGES

    def __getitem__(self, k: int) -> tuple[np.ndarray, int, np.ndarray, int]:
        rng = np.random.default_rng(k)
        left, right = rng.integers(0, 256, (2, 16, 16, 3), np.uint8)
        return left, 0, right // 2, k % 5


@pytest.fixture(scope="module")
def pairs(tmp_path_factory, require_package) -> Path:
    require_package("ffcv")
    from ffcv.fields import IntField, RGBImageField
    from ffcv.writer import DatasetWriter

    path = tmp_path_factory.mktemp("pairs") / "pairs.beton"
    fields = {
        "left": RGBImageField(write_mode="jpg"),
        "coarse": IntField(),
        "right": RGBImageField(write_mode="jpg"),
        "fine": IntField(),
    }
    DatasetWriter(str(path), fields, num_workers=1).from_indexed_dataset(Pairs(), shuffle_indices=False)
    return path


def test_info(pairs, capsys):
    assert main(["info", f"{pairs}"]) == 0
    assert "labels: 1 classes of 60 to 60 images" in capsys.readouterr().out
    assert main(["info", f"{pairs}", *CHOSEN]) == 0
    printed = capsys.readouterr().out
    assert "right (image, read as image), fine (int, read as label), left (image, not read)" in printed
    assert "labels: 5 classes of 12 to 12 images" in printed
    assert main(["info", f"{pairs}", "--image-field", "middle"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "no image field 'middle'" in line and "'left' (image)" in line


@pytest.mark.slow
def test_preview(pairs, tmp_path):
    """By the options, and by the recipe."""
    out, recipe = tmp_path / "views.png", write_tiny_recipe(tmp_path / "tiny.toml")

    def sheet(*more: str) -> np.ndarray:
        assert main(["preview", f"{pairs}", "--out", f"{out}", "--rows", "2", *more]) == 0
        return np.asarray(Image.open(out)).astype(int)

    default, chosen = sheet("--recipe", f"{recipe}"), sheet("--recipe", f"{recipe}", *CHOSEN)
    assert (default != chosen).any()
    recipe.write_text(recipe.read_text() + '\n[data]\nimage_field = "right"\nlabel_field = "fine"\n')
    assert (sheet("--recipe", f"{recipe}") == chosen).all()


@pytest.mark.slow
def test_train_and_evaluate(pairs, tmp_path, capsys):
    """The names are settings of the run: its folder continues it without them, and other names are another run."""
    recipe, run = f"{write_tiny_recipe(tmp_path / 'tiny.toml')}", tmp_path / "run"
    common = [f"{pairs}", "--out", f"{run}", "--val", f"{pairs}", "--train.epochs", "2"]
    assert main(["train", recipe, *common, *CHOSEN]) == 0
    assert load_recipe(f"{run}").field_names == ("right", "fine")
    identity = load_checkpoint(run / "last.pt")["identity"]
    assert (identity["data.image_field"], identity["data.label_field"]) == ("right", "fine")
    # a file without a usable label would have had no kNN
    assert any("knn" in line for line in (run / "metrics.jsonl").read_text().splitlines())
    capsys.readouterr()
    for again in (["train", recipe, *common, *CHOSEN], ["train", f"{run}", *common]):
        assert main(again) == 0
        assert "complete" in capsys.readouterr().out
    assert main(["train", recipe, *common]) == 2
    assert "data.image_field was 'right', is now None" in capsys.readouterr().err
    files = ["--train", f"{pairs}", "--test", f"{pairs}"]
    assert main(["evaluate", f"{run}", *files, "--epochs", "0", "--k", "1", *CHOSEN]) == 0
    record = json.loads((run / "evaluate.json").read_text())
    assert record["num_classes"] == 5
    # each image is its own nearest neighbour
    assert record["knn"]["top1"] == 1.0


def test_peers_get_the_fields_that_were_chosen(pairs):
    """A copy under the usual names, which FFCV's pipelines are keyed by."""
    with (
        BetonReader(pairs, "right", "fine") as reader,
        without_markers(pairs, ["right", "fine"]) as plain,
        BetonReader(plain) as copy,
    ):
        assert [field.name for field in copy.fields] == ["image", "label"]
        assert copy.labels.tolist() == reader.labels.tolist() == [k % 5 for k in range(NUM_IMAGES)]
        assert all((copy[k][0] == reader[k][0]).all() for k in range(NUM_IMAGES))


def test_bench_loader_measures_the_fields_that_were_chosen(pairs):
    options = parse(Options, [f"{pairs}", *CHOSEN], "fastclr bench loader")
    settings = LoaderSettings(size=16, threads=1, batch_size=4)
    (ours, _) = _cases(options, options.file, settings, "crops", NUM_IMAGES)
    with ours.open() as loader:
        assert loader.reader.labels.tolist() == [k % 5 for k in range(NUM_IMAGES)]
