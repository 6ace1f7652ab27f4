"""`bench bottleneck`: recommendations from known figures, and a run of seconds."""

import json
import multiprocessing
import re
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import torch
from support.tiny_run import write_tiny_file, write_tiny_recipe

from benchmarks.bottleneck.bench import BottleneckReport, BottleneckSettings, bottleneck_table
from benchmarks.bottleneck.measure import loader_in_process
from benchmarks.bottleneck.recommend import RunSetup, Throughputs, recommendations
from benchmarks.core.machine import Machine
from benchmarks.core.report import load
from fastclr.cli.main import main
from fastclr.config import Config
from pipelines import BetonWriter, ViewSpec

SETUP = RunSetup(
    device="cuda",
    engine="native",
    loader_threads=4,
    train_threads=4,
    cores=16,
    batch_size=256,
    size=224,
    precision="bfloat16",
    compiled=True,
    longer_side=500,
    recompressed=True,
    decoded_bytes=600 * 10**9,
    memory_bytes=64 * 10**9,
)
THROUGHPUTS = Throughputs(
    loader=1000.0,
    model=2500.0,
    together=990.0,
    step_alone=0.10,
    step_beside=0.11,
    step=0.12,
    slowdowns=[1.01, 1.05, 1.03],
)
FAST_LOADER = replace(THROUGHPUTS, loader=5000.0)


def kinds(lines: list[str]) -> list[str]:
    return [line.partition(":")[0] for line in lines]


def test_factor_and_interference():
    assert THROUGHPUTS.factor == pytest.approx(2.5)
    assert FAST_LOADER.factor == pytest.approx(2)
    assert THROUGHPUTS.interference == pytest.approx(0.03)  # the median of the rounds
    assert THROUGHPUTS.uncertainty == pytest.approx(1.57 * 0.02 / 3**0.5)  # quartiles at 1.02 and 1.04
    settings = BottleneckSettings(**asdict(SETUP), rounds=3, steps=5)
    for slowdowns, said in ((16 * [1.01, 1.03], False), ([0.8, 1.0, 1.2], True)):
        speeds = replace(THROUGHPUTS, slowdowns=slowdowns)
        report = BottleneckReport(Machine(), "x", "x.beton", settings, speeds, [])
        assert ("too noisy" in str(bottleneck_table(report).caption)) is said
    without = replace(THROUGHPUTS, step_beside=None, slowdowns=[])
    assert without.interference is without.uncertainty is None
    assert bottleneck_table(replace(report, results=without)).row_count == 3


def test_a_loader_that_limits_a_gpu():
    lines = recommendations(SETUP, THROUGHPUTS)
    assert kinds(lines) == ["threads", "engine"]
    assert "--data.threads 16" in lines[0]
    assert "--data.engine dali" in lines[1]


def test_a_slow_engine_and_large_images():
    setup = replace(SETUP, engine="torchvision", loader_threads=16, longer_side=3000, recompressed=False)
    lines = recommendations(setup, THROUGHPUTS)
    assert kinds(lines) == ["engine", "engine", "max side"]
    assert "--data.engine native" in lines[0]
    assert "--max-side 500 --jpeg recompress" in lines[2]


def test_originals_within_the_size_are_recompressed():
    setup = replace(SETUP, engine="dali", loader_threads=16, recompressed=False)
    assert kinds(recommendations(setup, THROUGHPUTS)) == ["engine", "jpeg"]


def test_a_small_set_becomes_resident():
    lines = recommendations(replace(SETUP, decoded_bytes=2 * 10**9), THROUGHPUTS)
    assert any("--data.engine resident" in line and "2.0 GB" in line for line in lines)


def test_threads_of_a_cpu_are_balanced():
    """100 images/s per loader thread and 50 per training thread: of 12 threads 4 load, and 8 train."""
    setup = replace(SETUP, device="cpu", cores=12, loader_threads=1, train_threads=11)
    speeds = replace(THROUGHPUTS, loader=100.0, model=550.0)
    assert (
        "--data.threads 4 --train.threads 8 balances both, at about 400 images/s"
        in recommendations(setup, speeds)[0]
    )


def test_nothing_left_to_set():
    setup = replace(SETUP, engine="resident", loader_threads=16, device="cpu", train_threads=16)
    assert recommendations(setup, THROUGHPUTS) == [
        "no setting would help: take more cores, a larger model, or views of fewer pixels"
    ]


def test_a_model_that_limits():
    setup = replace(SETUP, precision="float32", compiled=False)
    assert kinds(recommendations(setup, FAST_LOADER))[:3] == ["precision", "compile", "batch"]
    on_cpu = replace(SETUP, device="cpu", loader_threads=4, cores=16)
    assert "--data.threads 2 --train.threads 14" in recommendations(on_cpu, FAST_LOADER)[0]


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_a_run(tmp_path, capsys):
    recipe, file = write_tiny_recipe(tmp_path / "tiny.toml"), write_tiny_file(tmp_path / "tiny.beton")
    out = tmp_path / "v.json"
    arguments = ["--rounds", "2", "--steps", "3", "--out", str(out), "--interference"]
    arguments = [str(recipe), str(file), *arguments, "--data.engine", "native"]
    assert main(["bench", "bottleneck", *arguments]) == 0
    assert load(out, BottleneckReport).recipe == str(recipe)
    found = json.loads(out.read_text("utf-8"))
    results, settings = found["results"], found["settings"]
    assert (settings["device"], settings["engine"], settings["loader_threads"]) == ("cpu", "native", 1)
    for name in ("loader", "model", "together", "step_alone", "step_beside", "step"):
        assert results[name] > 0
    assert results["model"] == pytest.approx(20 / results["step_alone"])
    assert found["limits"] == ("loader" if results["loader"] < results["model"] else "model")
    assert found["factor"] >= 1
    assert len(results["slowdowns"]) == 2
    printed = capsys.readouterr().out
    assert f"The {found['limits']} limits: the other is {found['factor']:.1f} times as fast." in printed
    assert f"• {found['advice'][0]}" in printed


CONFIG = Config(
    views=ViewSpec.simclr(32),
    train=replace(Config().train, batch_size=20),
    data=replace(Config().data, engine="native", threads=1),
)


def test_a_loader_that_fails_in_another_process(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    jpeg = simplejpeg.encode_jpeg(pixels)
    with BetonWriter(tmp_path / "x.beton", 300) as writer:
        for index in range(300):
            writer.add_jpeg(jpeg[:-200] if index % 4 else jpeg)
    with pytest.raises(ChildProcessError) as caught:
        take_batches(tmp_path / "x.beton")
    message = r"the loader in another process: .*x.beton: 101 corrupt samples, the last: .*"
    assert re.fullmatch(message, str(caught.value))


def take_batches(file: Path) -> None:
    with loader_in_process(CONFIG, file, torch.device("cpu")) as advance:
        for _ in range(15):
            advance()


def test_a_loader_that_dies_in_another_process(tmp_path):
    file = write_tiny_file(tmp_path / "tiny.beton")
    with loader_in_process(CONFIG, file, torch.device("cpu")) as advance:
        advance()
        (process,) = multiprocessing.active_children()
        process.kill()
        process.join()
        with pytest.raises(ChildProcessError, match="the loader in another process: its process died"):
            advance()


def test_the_old_name_and_the_old_option_still_work(tmp_path):
    recipe, file = write_tiny_recipe(tmp_path / "tiny.toml"), write_tiny_file(tmp_path / "tiny.beton")
    out = tmp_path / "v.json"
    arguments = ["--train", str(file), "--rounds", "1", "--steps", "1", "--out", str(out)]
    with pytest.warns(FutureWarning, match="bench bottleneck") as caught:
        assert main(["bench", "verdict", str(recipe), *arguments]) == 0
    warned = " ".join(str(warning.message) for warning in caught)
    assert "bench bottleneck" in warned and "--train" in warned
    found = load(out, BottleneckReport)
    assert found.interference is None and found.results.step_beside is None


def test_bad_arguments(tmp_path, capsys):
    recipe, file = write_tiny_recipe(tmp_path / "tiny.toml"), write_tiny_file(tmp_path / "tiny.beton")
    assert main(["bench", "bottleneck", str(recipe), str(file), "--out", "x.txt"]) == 2
    assert "--out must end in .json" in capsys.readouterr().err
    assert main(["bench", "bottleneck", "--rounds", "1"]) == 2
    assert "the recipe comes first" in capsys.readouterr().err
    assert main(["bench", "bottleneck", str(recipe), str(file), "--train.batch-size", "100"]) == 2
    assert "fewer than a batch of 100" in capsys.readouterr().err
