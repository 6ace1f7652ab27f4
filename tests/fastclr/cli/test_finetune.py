"""`fastclr finetune`: real commands on a tiny run."""

import json
from pathlib import Path

import pytest
from PIL import Image
from support.tiny_run import write_tiny_file, write_tiny_recipe

from fastclr.cli.main import main
from fastclr.recipes import load_finetune_recipe


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("finetune")
    write_tiny_file(folder / "a.beton", 79)
    write_tiny_file(folder / "b.beton", 41)
    recipe = write_tiny_recipe(folder / "tiny.toml")
    assert main(["train", str(recipe), str(folder / "a.beton"), "--out", str(folder / "run")]) == 0
    return folder


def command(place: Path, *arguments: str) -> list[str]:
    data = ["--train", str(place / "a.beton"), "--test", str(place / "b.beton")]
    small = [
        "--train.epochs",
        "3",
        "--train.batch-size",
        "10",
        "--train.threads",
        "1",
        "--train.device",
        "cpu",
    ]
    return ["finetune", str(place / "run"), *arguments, *data, *small]


def test_a_run_and_the_same_command_again(place, capsys):
    assert main(command(place, "--fraction", "0.5")) == 0
    folder = place / "run" / "finetune"
    result = json.loads((folder / "finetune.json").read_bytes())
    assert (result["images"], result["num_classes"], result["fraction"]) == (40, 5, 0.5)
    assert f"top-1 {result['test_top1']:.2%} on 41 test images; learnt from 40 images of 5 classes" in (
        capsys.readouterr().out
    )
    # it is complete: nothing is trained, and the result is printed again
    assert main(command(place, "--fraction", "0.5")) == 0
    assert f"top-1 {result['test_top1']:.2%}" in capsys.readouterr().out
    saved = load_finetune_recipe(str(folder))
    assert saved.finetune.fraction == 0.5 and saved.train.epochs == 3


def test_its_encoder_can_be_evaluated(place, capsys):
    assert main(command(place, "--out", str(place / "all"))) == 0
    data = ["--train", str(place / "a.beton"), "--test", str(place / "b.beton"), "--epochs", "1"]
    assert main(["evaluate", str(place / "all"), *data]) == 0
    assert (place / "all" / "evaluate.json").exists()


def test_seeds(place, capsys):
    out = place / "seeds"
    assert (
        main(command(place, "finetune-v2-10pct", "--seeds", "2", "--out", str(out), "--fraction", "0.3")) == 0
    )
    report = json.loads((out / "finetune.json").read_bytes())
    assert [one["subset_seed"] for one in report["seeds"]] == [0, 1]
    top1 = [one["test_top1"] for one in report["seeds"]]
    assert report["test_top1_mean"] == pytest.approx(sum(top1) / 2)
    assert report["test_top1_std"] == pytest.approx(abs(top1[0] - top1[1]) / 2**0.5)
    assert (
        f"{report['test_top1_mean']:.2%} ± {report['test_top1_std']:.2%} (2 seeds)" in capsys.readouterr().out
    )


def test_a_list_replaces_the_fraction_of_a_recipe(place, tmp_path):
    for number in range(41):
        label = number % 5
        (tmp_path / "images" / f"{label}").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (label * 50, number, 0)).save(tmp_path / f"images/{label}/{number}.png")
    source = tmp_path / "listed.beton"
    assert main(["convert", str(tmp_path / "images"), str(source)]) == 0
    (tmp_path / "list.txt").write_text("".join(f"{number}.png\n" for number in range(20)))
    data = ["--train", str(source), "--test", str(source), "--out", str(tmp_path / "out")]
    small = [
        "--train.epochs",
        "1",
        "--train.batch-size",
        "10",
        "--train.threads",
        "1",
        "--train.device",
        "cpu",
    ]
    listed = ["--list", str(tmp_path / "list.txt")]
    assert main(["finetune", str(place / "run"), "finetune-v1-1pct", *listed, *data, *small]) == 0
    result = json.loads((tmp_path / "out" / "finetune.json").read_bytes())
    assert (result["images"], result["fraction"]) == (20, None)


@pytest.mark.parametrize(
    ("arguments", "token"),
    [
        (["--from-layer", "4"], "has 2 layers"),
        (["--fraction", "0.001"], "leaves none"),
        (["--fraction", "2"], "finetune.fraction"),
        (["nothing"], "no recipe 'nothing'"),
        (["--seeds", "0"], "--seeds is 0"),
        (["--list", "LIST", "--fraction", "0.5"], "both choose"),
        (["--list", "LIST"], "names"),
    ],
)
def test_errors_are_one_line(place, capsys, arguments, token):
    (place / "list.txt").write_text("nobody.jpg\n")
    arguments = [str(place / "list.txt") if word == "LIST" else word for word in arguments]
    assert main(command(place, *arguments, "--out", str(place / "bad"))) == 2
    error = capsys.readouterr().err.strip()
    assert token in error and "\n" not in error
    assert not (place / "bad").exists()


def test_help_lists_the_recipes(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["finetune", "--help"])
    assert caught.value.code == 0
    assert "finetune-v1-1pct" in capsys.readouterr().out
