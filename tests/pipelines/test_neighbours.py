"""ViewLoader and Batch in the loops of Lightning, accelerate and lightly: the real packages."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.loader_support import loader

from pipelines import ViewLoader

pytestmark = [pytest.mark.slow, pytest.mark.heavy]

SUPPORT = Path(__file__).parents[1] / "support"


def expected(file: Path, epochs: int, **settings) -> list[tuple]:
    """Epoch, step and sample numbers of the loader's own batches."""
    settings = {"batch_size": 4, "size": 16, "seed": 2, "num_threads": 1, **settings}
    with ViewLoader(file, **settings) as ours:
        return [(batch.epoch, batch.step, batch.indices.tolist()) for _ in range(epochs) for batch in ours]


def on_two_ranks(script: str, file: Path, folder: Path) -> list[list[tuple]]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [str(SUPPORT / script), str(file), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    ranks = [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2)]
    return [[tuple(batch) for batch in rank] for rank in ranks]


def test_lightning_trains_every_epoch_from_the_first(tiny_beton, tmp_path, require_package):
    require_package("pytorch_lightning")
    from support.lightning_run import Recorder, trainer

    module = Recorder(tiny_beton)
    trainer(tmp_path, max_epochs=3).fit(module)
    assert module.seen == expected(tiny_beton, 3)


@pytest.mark.parametrize("steps", [4, 13])
def test_lightning_resumes_in_mid_epoch(tiny_beton, tmp_path, require_package, steps):
    """From a checkpoint in the first, and in the second epoch of ten batches: Lightning keeps the loader's state."""
    require_package("pytorch_lightning")
    from pytorch_lightning.callbacks import ModelCheckpoint
    from support.lightning_run import Recorder, trainer

    saving = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=steps, save_top_k=-1)
    trainer(tmp_path, max_epochs=2, enable_checkpointing=True, callbacks=[saving]).fit(Recorder(tiny_beton))
    resumed = Recorder(tiny_beton)
    checkpoint = tmp_path / f"step={steps}.ckpt"
    trainer(tmp_path, max_epochs=2).fit(resumed, ckpt_path=checkpoint, weights_only=False)
    assert resumed.seen == expected(tiny_beton, 2)[steps:]


def test_lightning_on_two_ranks(tiny_beton, tmp_path, require_package):
    require_package("pytorch_lightning")
    ranks = on_two_ranks("lightning_run.py", tiny_beton, tmp_path)
    assert ranks == [expected(tiny_beton, 2, rank=rank, world_size=2) for rank in range(2)]


def test_accelerate_on_two_ranks(tiny_beton, tmp_path, require_package):
    require_package("accelerate")
    ranks = on_two_ranks("accelerate_run.py", tiny_beton, tmp_path)
    assert ranks == [expected(tiny_beton, 1, rank=rank, world_size=2) for rank in range(2)]


def test_lightlys_loops(tiny_beton, require_package):
    """They take `x0, x1 = batch[0]`, with labels behind."""
    loss_module = require_package("lightly.loss")
    criterion = loss_module.NTXentLoss(temperature=0.1)
    encoder = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 8))
    with loader(tiny_beton) as ours:
        for batch in ours:
            x0, x1 = batch[0]
            loss = criterion(encoder(x0), encoder(x1))
            assert torch.isfinite(loss) and batch[1].shape == (6,)
