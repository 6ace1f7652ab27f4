"""SimCLR as a LightningModule; the loader does what a DistributedSampler would.

pip install pytorch-lightning
python examples/lightning_module.py photos.beton
"""

import argparse

import pytorch_lightning as lightning
import torch
import torch.distributed as dist

from fastclr import LARS, SimCLR, ViewLoader, nt_xent
from fastclr.model import convert_batchnorm, projector, resnet
from fastclr.optim import scaled_lr, warmup_cosine
from pipelines import Batch


class LitSimCLR(lightning.LightningModule):
    """SimCLR with LARS, linear warm-up and a cosine, as in the paper."""

    def __init__(self, file: str, size: int, batch_size: int, depth: int, warmup_epochs: int) -> None:
        super().__init__()
        self.save_hyperparameters()
        encoder = resnet(depth, image_size=size)
        self.model = SimCLR(encoder, projector(2048 if depth == 50 else 512))

    def train_dataloader(self) -> ViewLoader:
        # each rank reads its own rows of the global batch, so Lightning must add no sampler
        return ViewLoader(
            self.hparams.file,
            self.hparams.batch_size,
            size=self.hparams.size,
            rank=self.trainer.global_rank,
            world_size=self.trainer.world_size,
            device=self.device,
        )

    def configure_model(self) -> None:
        self.model.to(memory_format=torch.channels_last)
        if self.trainer.world_size > 1:
            self.model = convert_batchnorm(self.model)

    def training_step(self, batch: Batch, _: int) -> torch.Tensor:
        _, z = self.model(batch.views.flatten(0, 1))
        group = dist.group.WORLD if self.trainer.world_size > 1 else None
        loss = nt_xent(z, temperature=0.1, group=group)
        self.log("loss", loss, prog_bar=True, batch_size=len(batch))
        return loss

    def configure_optimizers(self) -> dict:
        total = int(self.trainer.estimated_stepping_batches)
        epochs = self.trainer.max_epochs or 1
        warmup = min(total, self.hparams.warmup_epochs * total // epochs)
        peak = scaled_lr(0.3, self.hparams.batch_size * self.trainer.world_size)
        optimizer = LARS(self.parameters(), lr=peak, weight_decay=1e-6)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: warmup_cosine(step, total, warmup)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", help="a .beton file")
    parser.add_argument("--size", type=int, default=224, help="side length of a view in pixels")
    parser.add_argument("--batch-size", type=int, default=256, help="images per rank")
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--warmup-epochs", type=int, default=10)
    parser.add_argument("--depth", type=int, default=50, choices=(10, 18, 34, 50))
    parser.add_argument("--steps", type=int, default=-1, help="stop after so many steps")
    parser.add_argument("--out", default="encoder.pt", help="file for the encoder's weights")
    args = parser.parse_args()

    lightning.seed_everything(0)
    module = LitSimCLR(args.file, args.size, args.batch_size, args.depth, args.warmup_epochs)
    trainer = lightning.Trainer(
        max_epochs=args.epochs,
        max_steps=args.steps,
        precision="bf16-mixed" if torch.cuda.is_available() else "32-true",
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        log_every_n_steps=1,
    )
    trainer.fit(module)
    if trainer.is_global_zero:
        print(f"step {trainer.global_step}: loss {trainer.callback_metrics['loss'].item():.3f}")
        torch.save(module.model.encoder.state_dict(), args.out)
        print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
