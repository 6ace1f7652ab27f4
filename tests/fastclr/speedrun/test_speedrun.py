"""The command, in real processes on drawn images: a record, an interruption, the tables, and a verification."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.smoke_rung import SMOKE_RUNG, write_smoke_ladder

from fastclr.cli.speedrun import main
from fastclr.recipes import load_recipe
from fastclr.speedrun.check import check_record

pytestmark = pytest.mark.slow


def command(root: Path, *more: str, rung: str = "smoke") -> list[str]:
    files = ["--train", str(root / "train.beton"), "--test", str(root / "test.beton")]
    return [rung, *files, "--recipe", str(root / "tiny.toml"), "--out", str(root), *more]


@pytest.fixture(scope="module")
def ladder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("ladder")
    write_smoke_ladder(root)
    # drawn patterns give the seeds any accuracy: what is checked here is the command
    assert main(command(root, "--work", str(root / "work"), "--name", "baseline", "--about", "tiny")) == 0
    return root


def record_of(ladder: Path) -> Path:
    (folder,) = (ladder / "smoke").glob("*_baseline")
    return folder


def test_a_record_is_written(ladder):
    folder = record_of(ladder)
    assert check_record(folder) == []
    summary = json.loads((folder / "record.json").read_text())
    assert [seed["seed"] for seed in summary["seeds"]] == [0, 1]
    for seed in summary["seeds"]:
        # the whole process counts: importing torch alone takes more than a second
        assert seed["clock_s"] == pytest.approx(seed["cpu_s"] + 0.5)
        assert 1 < seed["cpu_s"] < 120
        assert 0 <= seed["knn"] <= 1
    assert summary["seeds"][0]["knn"] != summary["seeds"][1]["knn"] or summary["sd"] == 0
    assert summary["steps"] == 20
    assert summary["pflop"] > 0
    recipe = load_recipe(str(folder / "recipe.toml"))
    assert (recipe.train.threads, recipe.data.threads, recipe.train.device) == (1, 1, "cpu")
    assert recipe.train.precision in ("bfloat16", "float32")


def test_logs_begin_with_command_commit_recipe_and_machine(ladder):
    lines = [json.loads(line) for line in (record_of(ladder) / "logs/seed1.jsonl").read_text().splitlines()]
    start, *steps, trained, evaluated = lines
    assert [line["kind"] for line in lines] == ["start", *["step"] * 20, "trained", "evaluated"]
    assert start["recipe"] == (record_of(ladder) / "recipe.toml").read_text()
    assert len(start["commit"]) == 40
    assert "Architecture" in start["machine"]["lscpu"]
    assert [step["step"] for step in steps] == list(range(1, 21))
    assert (trained["labels_seen"], trained["seed"], evaluated["seed"]) == (0, 1, 1)
    assert evaluated["encoder_before"] == evaluated["encoder_after"]
    assert not list(record_of(ladder).rglob("*.safetensors")), "a record has no weights"


def test_the_training_process_gets_no_test_file(ladder):
    job = json.loads((ladder / "work/seeds/0/train-job.json").read_text())
    assert (job["kind"], job["test"]) == ("train", [])


def test_seeds_are_those_of_train(ladder, tmp_path):
    """A seed's weights are what `train` gives with that seed: nothing but the labels is different."""
    import torch

    from fastclr.train.checkpoint import load_encoder
    from fastclr.train.pretrain import train

    recipe = ladder / "work/seeds/1/recipe.toml"
    config = load_recipe(str(recipe))
    from dataclasses import replace

    train(replace(config, train=replace(config.train, seed=1)), ladder / "train.beton", tmp_path / "run")
    ours, theirs = (load_encoder(path)[0] for path in (ladder / "work/seeds/1/run", tmp_path / "run"))
    for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_the_tables_are_written_and_checked(ladder, capsys):
    assert main(["table", "--out", str(ladder), "--check"]) == 1
    assert main(["table", "--out", str(ladder)]) == 0
    assert main(["table", "--out", str(ladder), "--check"]) == 0
    page = (ladder / "README.md").read_text()
    folder = record_of(ladder).name
    summary = json.loads((record_of(ladder) / "record.json").read_text())
    assert f"[{folder}](smoke/{folder}/README.md)" in page
    assert f"**{100 * summary['mean']:.2f}**" in page
    other = {"cpu-avx2": "cpu-avx512-bf16", "cpu-avx512-bf16": "cpu-avx2"}[summary["machine_class"]]
    assert f"| {other} | not run |" in page


def test_the_record_is_verified(ladder, tmp_path, capsys):
    files = ["--train", str(ladder / "train.beton"), "--test", str(ladder / "test.beton")]
    folder = record_of(ladder)
    assert main(["verify", str(folder), *files, "--seeds", "1", "--work", str(tmp_path / "verify")]) == 0
    said = capsys.readouterr().out
    assert "holds: " in said
    (result,) = (json.loads(path.read_text()) for path in (folder / "verified").glob("*.json"))
    record = json.loads((folder / "record.json").read_text())
    # the same seed on the same machine with one thread: the same accuracy
    assert result["seeds"][0]["knn"] == pytest.approx(record["seeds"][0]["knn"], abs=0.05)
    assert result["holds"]
    assert check_record(folder) == []
    swapped = ["--train", str(ladder / "test.beton"), "--test", str(ladder / "test.beton")]
    with pytest.raises(ValueError, match="fingerprint"):
        main(["verify", str(folder), *swapped])


def test_a_record_of_the_same_name_is_refused_at_once(ladder):
    with pytest.raises(FileExistsError, match="baseline"):
        main(command(ladder, "--name", "baseline"))


def test_an_interrupted_command_goes_on_where_it_was(ladder, tmp_path):
    """SIGTERM while seed 1 trains: seed 0, which was finished, is kept; seed 1 begins anew."""
    root = tmp_path / "ladder"
    shutil.copytree(ladder, root, ignore=shutil.ignore_patterns("smoke", "work"))
    work = root / "work"
    long = (root / "tiny.toml").read_text().replace("epochs = 5", "epochs = 60")
    (root / "tiny.toml").write_text(long)
    arguments = command(root, "--work", str(work), "--name", "again", "--parallel", "1")
    program = [sys.executable, "-m", "fastclr.cli.main", "speedrun", *arguments]
    process = subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    metrics = work / "seeds/1/run/metrics.jsonl"
    deadline = time.monotonic() + 240
    while not (metrics.exists() and metrics.stat().st_size):
        assert process.poll() is None and time.monotonic() < deadline, process.stdout.read()
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert not (work / "seeds/1/trained.json").exists()
    kept = (work / "logs/seed0.jsonl").read_bytes()
    pids = subprocess.run(["pgrep", "-f", str(work)], capture_output=True, text=True).stdout.split()
    assert set(pids) <= {str(os.getpid())}, "a process outlived the command"
    done = subprocess.run(program, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "logs seed 0: finished before" in done.stdout
    (folder,) = (root / "smoke").glob("*_again")
    assert (folder / "logs/seed0.jsonl").read_bytes() == kept
    assert check_record(folder) == []


def test_epochs_are_fitted_and_a_recipe_that_does_not_fit_is_refused(ladder, tmp_path):
    root = tmp_path / "ladder"
    shutil.copytree(ladder, root, ignore=shutil.ignore_patterns("smoke", "work"))
    (root / "rungs.toml").write_text(SMOKE_RUNG.replace("budget_cpu_s = 120", "budget_cpu_s = 40"))
    (root / "tiny.toml").write_text((root / "tiny.toml").read_text().replace("epochs = 5", "epochs = 100000"))
    with pytest.raises(ValueError, match=r"use --fit"):
        main(command(root, "--work", str(root / "w1")))
    assert main(command(root, "--work", str(root / "w2"), "--fit", "--seeds", "1", "--reserve", "0.5")) == 0
    trained = json.loads((root / "w2/seeds/0/trained.json").read_text())
    assert 100 < load_recipe(str(root / "w2/recipe.toml")).train.epochs < 100_000
    assert trained["clock_s"] < 40
    assert not (root / "smoke").exists(), "one seed of two is no record"


def test_another_recipe_does_not_continue_a_folder(ladder):
    (ladder / "other.toml").write_text((ladder / "tiny.toml").read_text().replace("0.2\n", "0.3\n", 1))
    arguments = ["--work", str(ladder / "work"), "--name", "other"]
    arguments = [*command(ladder), *arguments]
    arguments[arguments.index(str(ladder / "tiny.toml"))] = str(ladder / "other.toml")
    with pytest.raises(ValueError, match="seeds with other recipe"):
        main(arguments)


def test_files_of_another_set_are_refused(ladder):
    arguments = command(ladder, "--name", "swapped", "--work", str(ladder / "swapped"))
    arguments[arguments.index("--train") + 1] = str(ladder / "test.beton")
    with pytest.raises(ValueError, match="drawn patterns: 79"):
        main(arguments)


def test_the_previous_record_is_run_in_turn(ladder, tmp_path):
    root = tmp_path / "ladder"
    shutil.copytree(ladder, root, ignore=shutil.ignore_patterns("work"))
    folder = record_of(root)
    arguments = command(root, "--work", str(root / "w"), "--name", "second", "--against", str(folder))
    # it is equal to the first, so it can't be a record
    with pytest.raises(ValueError, match="not significantly above the mean of"):
        main(arguments)
    again = sorted((root / "w/record/previous").glob("*.jsonl"))
    assert [path.name for path in again] == ["seed0.jsonl", "seed1.jsonl"]
    summary = json.loads((root / "w/record/record.json").read_text())
    assert summary["against"]["run_again"]
    assert summary["against"]["difference"] == pytest.approx(0, abs=0.05)


def test_a_source_is_converted_on_the_clock(tiny_photos, tmp_path):
    from pipelines.convert import convert, open_source

    convert(open_source([str(tiny_photos)]), tmp_path / "train.beton")
    shutil.copy(tmp_path / "train.beton", tmp_path / "test.beton")
    rung = SMOKE_RUNG.replace("79", "40").replace("num_classes = 5", "num_classes = 4")
    (tmp_path / "rungs.toml").write_text(rung.replace("conversion_cpu_s = 0.5\n", ""))
    from support.tiny_run import write_tiny_recipe

    write_tiny_recipe(tmp_path / "tiny.toml")
    with pytest.raises(ValueError, match="give --source"):
        main(command(tmp_path, "--work", str(tmp_path / "w")))
    assert main(command(tmp_path, "--work", str(tmp_path / "w"), "--source", str(tiny_photos))) == 0
    conversion = json.loads((tmp_path / "w/conversion.json").read_text())
    assert conversion["conversion_cpu_s"] > 0.1
    assert "--source" in conversion["conversion"]
