"""`fastclr train` as a user runs it: exact resume after a real kill, and one line for each mistake."""

import json
import os
import resource
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from support.tiny_run import write_tiny_file, write_tiny_recipe

from fastclr.cli import main as cli
from fastclr.cli.train import resuming
from fastclr.recipes import default_run_folder, load_recipe
from fastclr.train.checkpoint import load_checkpoint, load_encoder

ROOT = Path(__file__).parents[3]
TIMEOUT_S = 120


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with tiny.beton and tiny.toml."""
    folder = tmp_path_factory.mktemp("train")
    write_tiny_file(folder / "tiny.beton")
    write_tiny_recipe(folder / "tiny.toml")
    return folder


def arguments(place: Path, out: str, *more: str) -> list[str]:
    return [
        "train",
        str(place / "tiny.toml"),
        str(place / "tiny.beton"),
        "--out",
        str(place / out),
        *more,
    ]


def start(*argv: str, **options) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "fastclr.cli.main", *argv]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


def records(folder: Path) -> list[dict]:
    """Those that are there, while the run may be writing the next."""
    path = folder / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def run_and_kill(place: Path, out: str, number: signal.Signals, after_step: int) -> subprocess.Popen:
    # a larger network than the recipe's: its steps take long enough to hit one of them
    process = start(*arguments(place, out, *SLOW))
    wait_for_records(process, place / out, after_step)
    process.send_signal(number)
    process.wait(TIMEOUT_S)
    return process


def wait_for_records(process: subprocess.Popen, folder: Path, number: int) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while len(records(folder)) < number:
        assert process.poll() is None, "it ended"
        assert time.monotonic() < deadline
        time.sleep(0.005)


SLOW = ("--views.size", "32", "--model.width", "0.5")


@pytest.mark.slow
def test_killed_and_resumed_is_the_same_run(place):
    """20 steps straight = about 12 steps, SIGTERM, resume, the rest: bit for bit."""
    assert cli.main(arguments(place, "straight", *SLOW)) == 0

    process = run_and_kill(place, "killed", signal.SIGTERM, after_step=12)
    out, err = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM, err
    stopped_at = load_checkpoint(place / "killed" / "last.pt")["step"]
    assert 12 <= stopped_at < 20
    assert f"stopped by SIGTERM at step {stopped_at} of 20; continue with: fastclr train " in out
    assert err == ""
    # the command that it printed: the recipe is the run's own, with the options that it was started with
    assert cli.main(shlex.split(out.split("continue with: fastclr ")[1])) == 0

    straight, resumed = (load_checkpoint(place / name / "last.pt") for name in ("straight", "killed"))
    assert straight["step"] == resumed["step"] == 20
    for name, tensor in straight["model"].items():
        assert torch.equal(tensor, resumed["model"][name]), name
    for number, state in straight["optimizer"]["state"].items():
        assert torch.equal(state["momentum_buffer"], resumed["optimizer"]["state"][number]["momentum_buffer"])
    assert straight["loader"] == resumed["loader"]
    assert torch.equal(straight["random"]["cpu"], resumed["random"]["cpu"])
    for name, tensor in load_encoder(place / "killed")[0].state_dict().items():
        assert torch.equal(tensor, straight["model"][f"encoder.{name}"]), name
    exact = ("step", "epoch", "lr", "loss", "accuracy", "entropy")
    both = [[[r[key] for key in exact] for r in records(place / name)] for name in ("straight", "killed")]
    assert both[0] == both[1]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_saves_though_nobody_reads_the_output(place, number):
    """In `fastclr train … 2>&1 | tee log`, Ctrl-C ends tee first."""
    out = f"unread-{number.name}"
    process = start(*arguments(place, out, *SLOW))
    assert process.stdout is not None
    assert process.stdout.readline().startswith("79 images")
    process.stdout.close()
    assert process.stderr is not None
    process.stderr.close()
    wait_for_records(process, place / out, 2)
    process.send_signal(number)
    assert process.wait(TIMEOUT_S) == 128 + number
    saved = load_checkpoint(place / out / "last.pt")["step"]
    assert saved == records(place / out)[-1]["step"] >= 2


@pytest.mark.slow
def test_no_space_left_leaves_nothing(place):
    """A limit on file sizes stands in for the full disk; the weights of this network don't fit under it."""

    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, 3_000_000))

    process = start(*arguments(place, "full", "--model.width", "1"), preexec_fn=small_files)
    _, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 2, err
    assert err == f"fastclr train: File too large: {place / 'full' / 'encoder.safetensors'}\n"
    assert not (place / "full").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["FILE", "missing.beton"], "No such file or directory: missing.beton"),
        (["FILE", "tiny.toml"], "tiny.toml"),
        (["--train.batch-size", "100"], "79 images, fewer than a batch of 100; lower --train.batch-size"),
        (["--model.encoder", "timm:vit_tiny"], "timm has no model 'vit_tiny'; did you mean vit_tiny_patch"),
        (["--model.encoder", "torchvision:vit"], "torchvision has no classifier 'vit'"),
        (["--val", "missing.beton"], "No such file or directory: missing.beton"),
        (["--model.depth", "19"], "there is no ResNet of depth 19; there are 10, 18, 34"),
        (["--out", "tiny.beton"], "tiny.beton is a file; --out needs a folder"),
        (["--out", "tiny.beton/run"], "tiny.beton"),
        (["--train.device", "abacus"], "train.device is 'abacus'; it must be auto, cpu, cuda or cuda:N"),
    ],
)
def test_mistakes_get_one_line(place, monkeypatch, capsys, change, message, require_package):
    if change[1].startswith("timm:"):
        require_package("timm")
    monkeypatch.chdir(place)
    before = sorted(place.iterdir())
    name, value = change
    file = value if name == "FILE" else str(place / "tiny.beton")
    given = {"--out": str(place / "mistake")} | ({} if name == "FILE" else {name: value})
    options = [word for pair in given.items() for word in pair]
    assert cli.main(["train", str(place / "tiny.toml"), file, *options]) == 2
    err = capsys.readouterr().err
    assert err.startswith("fastclr train: ")
    assert message in err
    assert err.count("\n") == 1
    assert sorted(place.iterdir()) == before, "something half-written"


def test_recipe_mistakes_get_one_line(place, capsys):
    (place / "typo.toml").write_text("[optim]\nbase_rl = 1.0\n")
    assert cli.main(["train", str(place / "typo.toml"), "x.beton"]) == 2
    assert "unknown key optim.base_rl; did you mean optim.base_lr?\n" in capsys.readouterr().err
    assert cli.main(["train", "cifar", "x.beton"]) == 2
    assert "no recipe 'cifar'; there are" in capsys.readouterr().err
    assert cli.main(["train", "--out", "x"]) == 2
    assert "the recipe comes first: fastclr train RECIPE FILE.beton" in capsys.readouterr().err


def test_cut_checkpoint(place, capsys):
    (place / "cut").mkdir()
    (place / "cut" / "last.pt").write_bytes(b"PK\x03\x04 half a checkpoint")
    assert cli.main(arguments(place, "cut")) == 2
    err = capsys.readouterr().err
    assert "last.pt is corrupt" in err
    assert err.count("\n") == 1


def test_help_lists_recipes_and_settings(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["train", "--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    for word in (
        "cifar10-rn18",
        "imagenet-rn50-100ep",
        "RECIPE FILE.beton",
        "--val VAL.beton",
        "--train.epochs INT",
        "--views.size",
    ):
        assert word in out


def test_help_of_a_recipe_shows_its_settings(capsys):
    with pytest.raises(SystemExit):
        cli.main(["train", "cifar10-rn18", "--help"])
    assert "(default: 1000)" in capsys.readouterr().out


def test_settings_of_several_views(place, tmp_path, capsys):
    """They are overridden by their number; the setting of one spec is refused with a hint at these."""
    recipe = tmp_path / "pair.toml"
    tables = 2 * "[[views]]\nsize = 16\nnum_views = 1\n"
    recipe.write_text((place / "tiny.toml").read_text().replace("[views]\nsize = 16\n", tables))
    argv = [
        "train",
        str(recipe),
        str(place / "tiny.beton"),
        "--out",
        str(tmp_path / "run"),
        "--train.epochs",
        "1",
    ]
    for wrong, named in (
        (["--views.size", "24"], "--views.0.size"),
        (["--views.1.solarize-p", "2"], "ViewSpec.solarize_p is 2.0"),
        (["--views.1.size", "24"], "1 view of 16 px and 1 view of 24 px"),
        (["--views.1.num-views", "2"], "3 views of 16 px"),
    ):
        assert cli.main([*argv, *wrong]) == 2
        assert named in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert cli.main([*argv, "--views.1.solarize-p", "0.2"]) == 0
    specs = load_recipe(str(tmp_path / "run")).view_specs
    assert [spec.solarize_p for spec in specs] == [0.0, 0.2]
    with pytest.raises(SystemExit):
        cli.main(["train", str(recipe), "--help"])
    assert "--views.1.solarize-p" in capsys.readouterr().out


def test_a_run_folder_is_a_recipe(place, monkeypatch, tmp_path):
    """A name of both a recipe and a folder means the recipe; the command for resuming writes the folder as a path."""
    monkeypatch.chdir(tmp_path)
    for folder in ("first", "demo"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "config.toml").write_bytes((place / "tiny.toml").read_bytes())
        command = shlex.split(resuming(Path(folder), Path("my images.beton")))
        assert command[:2] + command[3:] == ["fastclr", "train", "my images.beton"]
        assert default_run_folder(command[2]) == Path(folder)
        assert load_recipe(command[2]) == load_recipe(str(place / "tiny.toml"))
    assert default_run_folder("demo") == Path("runs/demo")
    assert load_recipe("demo") != load_recipe("./demo")
    assert default_run_folder("recipes/tiny.toml") == Path("runs/tiny")


def test_default_run_folder_is_named_for_the_recipe(place, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    argv = ["train", str(place / "tiny.toml"), str(place / "tiny.beton"), "--train.epochs", "1"]
    assert cli.main(argv) == 0
    assert (tmp_path / "runs" / "tiny" / "encoder.safetensors").exists()
    out = capsys.readouterr().out
    assert "done: step 4 of 4" in out
    assert "fastclr evaluate runs/tiny --train" in out
    # the same command in the folder of a complete run
    before = (tmp_path / "runs" / "tiny" / "last.pt").read_bytes()
    assert cli.main(argv) == 0
    assert "runs/tiny holds this run, which is complete: step 4 of 4" in capsys.readouterr().out
    assert (tmp_path / "runs" / "tiny" / "last.pt").read_bytes() == before
    assert cli.main([*argv, "--fresh"]) == 2
    assert "--fresh" in capsys.readouterr().err


@pytest.mark.parametrize("spelling", [["--train", "FILE"], ["--train=FILE"]])
def test_the_arguments_of_0_1(place, tmp_path, capsys, spelling):
    words = [word.replace("FILE", str(place / "tiny.beton")) for word in spelling]
    argv = ["train", str(place / "tiny.toml"), "--out", str(tmp_path / "run"), *words, "--train.epochs", "1"]
    assert cli.main([*argv, "--resume"]) == 2
    assert "holds no last.pt to resume" in capsys.readouterr().err
    assert cli.main(argv) == 0
    assert "--train FILE is now the second argument" in capsys.readouterr().err
    assert cli.main([*argv, "--resume"]) == 0
    assert "--resume is not needed any more" in capsys.readouterr().err
