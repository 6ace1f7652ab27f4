"""A Lightning run over a ViewLoader that notes what it was given; also as a script, for torchrun.

python lightning_run.py FILE.beton OUT_FOLDER
"""

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import pytorch_lightning as lightning
import torch

from pipelines import ViewLoader
from pipelines.contracts import Batch

Seen = list[tuple[int, int, list[int]]]
"""Epoch, step and sample numbers of each batch."""


class Recorder(lightning.LightningModule):
    """One linear layer; what its training step got."""

    def __init__(self, file: Path, **settings: Any) -> None:
        super().__init__()
        self.file, self.settings = (
            file,
            {"batch_size": 4, "size": 16, "seed": 2, "num_threads": 1, **settings},
        )
        self.layer = torch.nn.Linear(3, 1)
        self.seen: Seen = []

    def train_dataloader(self) -> ViewLoader:
        return ViewLoader(
            self.file, rank=self.trainer.global_rank, world_size=self.trainer.world_size, **self.settings
        )

    def training_step(self, batch: Batch, _: int) -> torch.Tensor:
        assert isinstance(batch, Batch)
        assert batch.views.device == self.device
        self.seen.append((batch.epoch, batch.step, batch.indices.tolist()))
        return self.layer(batch[0].mean((0, 3, 4))).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.01)


def trainer(folder: Path, **settings: Any) -> lightning.Trainer:
    warnings.filterwarnings("ignore", module="pytorch_lightning|lightning_fabric")
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return lightning.Trainer(
        accelerator="cpu",
        use_distributed_sampler=False,
        default_root_dir=folder,
        **{**quiet, "enable_checkpointing": False, **settings},
    )


def main(file: Path, folder: Path) -> None:
    module = Recorder(file)
    made = trainer(folder, max_epochs=2, devices=2, strategy="ddp")
    made.fit(module)
    (folder / f"rank{made.global_rank}.json").write_text(json.dumps(module.seen))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
