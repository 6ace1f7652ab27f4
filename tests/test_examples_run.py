"""The scripts of examples/ run: each for a few steps, on drawn images."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.tiny_run import write_tiny_file

EXAMPLES = Path(__file__).parents[1] / "examples"
SMALL = ["--size", "32", "--batch-size", "16", "--epochs", "2", "--steps", "3"]
ENCODER = ["--depth", "10"]

OPTIONS = {
    "simclr_minimal": [*ENCODER, "--warmup-epochs", "1"],
    "moco_v2": [*ENCODER, "--queue", "64"],
    "byol": [*ENCODER, "--warmup-epochs", "1"],
    "dino_multicrop": [
        *(*ENCODER, "--warmup-epochs", "1"),
        *("--small-size", "24", "--small-views", "3", "--prototypes", "64"),
    ],
    "ffcv_two_views": [],
    "lightning_module": [*ENCODER, "--warmup-epochs", "1"],
    "accelerate_loop": [*ENCODER, "--warmup-epochs", "1"],
}
PACKAGES = {
    "ffcv_two_views": "ffcv",
    "lightning_module": "pytorch_lightning",
    "accelerate_loop": "accelerate",
}
RANKED = {
    "simclr_minimal": ["torch.distributed.run", "--standalone", "--nproc-per-node=2"],
    "accelerate_loop": ["accelerate.commands.launch", "--cpu", "--num_processes=2", "--num_machines=1"],
}
"""How two processes of an example are started."""


def run(script: str, launcher: list[str], folder: Path, num_images: int = 40) -> str:
    """The output of an example; the folder has the file that it reads, and gets the one that it writes."""
    write_tiny_file(folder / "photos.beton", num_images)
    command = [sys.executable, *launcher, str(EXAMPLES / f"{script}.py"), "photos.beton"]
    done = subprocess.run(
        [*command, *SMALL, *OPTIONS[script]], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def check(out: str, folder: Path) -> float:
    """The last loss; the weights that the example has written are finite and not those it began with."""
    state = torch.load(folder / "encoder.pt", weights_only=True)
    assert state
    assert all(tensor.isfinite().all() for tensor in state.values())
    # batch norms count the steps that the encoder has taken
    counts = {int(tensor) for name, tensor in state.items() if name.endswith("num_batches_tracked")}
    assert min(counts) >= 3
    return float(re.findall(r"loss (\d+\.\d+)", out)[-1])


def test_every_example_is_run():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(OPTIONS)


def test_the_minimal_one_stays_minimal():
    assert len((EXAMPLES / "simclr_minimal.py").read_text(encoding="utf-8").splitlines()) <= 90


@pytest.mark.slow
@pytest.mark.parametrize("script", OPTIONS)
def test_one_process(script, tmp_path, require_package):
    if script in PACKAGES:
        require_package(PACKAGES[script])
    assert check(run(script, [], tmp_path), tmp_path) > 0


@pytest.mark.slow
@pytest.mark.parametrize("script", RANKED)
def test_two_processes(script, tmp_path, require_package):
    if script in PACKAGES:
        require_package(PACKAGES[script])
    # twice as many images: two ranks take as many steps per epoch as one process above
    assert check(run(script, ["-m", *RANKED[script]], tmp_path, num_images=80), tmp_path) > 0
