"""docs/own-training.md does what it says: each block is run as a script, small."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.tiny_run import write_tiny_file

PAGE = Path(__file__).parents[1] / "docs" / "own-training.md"
BLOCKS = dict(re.findall(r"^## (.+?)\n.*?```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.M | re.S))
"""The code under each heading."""

SIZES = re.compile(r"^BATCH, SIZE, EPOCHS(, WARMUP_EPOCHS)? = [\d, ]+", re.M)
PACKAGES = {"Lightning": "pytorch_lightning", "accelerate": "accelerate", "lightly": "lightly"}
LOSS = {
    "Distributed data parallel": "z.isfinite().all() and loss.isfinite()",
    "Lightning": "trainer.global_step == 2",
    "accelerate": "z.isfinite().all() and loss.isfinite()",
    "lightly": "loss.isfinite()",
}
"""What holds at the end of a block."""


def test_the_page_has_these_blocks():
    assert list(BLOCKS) == list(LOSS)


def test_distributed_training_takes_36_lines():
    lines = [line for line in BLOCKS["Distributed data parallel"].splitlines() if line.strip()]
    assert len(lines) <= 36


@pytest.mark.slow
@pytest.mark.parametrize("heading", BLOCKS)
def test_block(heading, tmp_path, require_package):
    if heading in PACKAGES:
        require_package(PACKAGES[heading])
    write_tiny_file(tmp_path / "photos.beton", 20)
    code, found = SIZES.subn(
        lambda line: f"BATCH, SIZE, EPOCHS{line[1] or ''} = 8, 32, 1" + (", 0" if line[1] else ""),
        BLOCKS[heading],
    )
    assert found == 1
    (tmp_path / "train.py").write_text(f"{code}\nassert {LOSS[heading]}\nprint('the end')\n")
    ranks = heading.startswith("Distributed")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"] if ranks else []
    done = subprocess.run(
        [sys.executable, *launcher, "train.py"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("the end") == (2 if ranks else 1)
