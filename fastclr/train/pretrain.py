"""Pre-training, the task of `fastclr train`: SimCLR on the images of a `.beton` file, by a config."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from fastclr.config import Config, LossConfig
from fastclr.device import pick_device
from fastclr.evaluate.rankme import batch_rank
from fastclr.loss import contrastive_metrics, margin_triplet, nt_logistic, nt_xent
from fastclr.model import SimCLR
from fastclr.optim import num_steps
from fastclr.train.build import (
    check_graph,
    check_memory,
    check_sizes,
    encoder_meta,
    make_model,
    make_optimizer,
    peak_lr,
    projector_kwargs,
    resolve,
    whiten_stem,
)
from fastclr.train.distributed import Ranks, data_parallel, mean_over_ranks, process_group, ranks_from_env
from fastclr.train.encoder_file import ENCODER, export_encoder
from fastclr.train.loop import Outcome
from fastclr.train.online_knn import OnlineKnn, check_val
from fastclr.train.projector_file import PROJECTOR, export_projector
from fastclr.train.run import run_identity
from fastclr.train.session import Session, evaluation_is_due
from fastclr.train.sinks import Sink
from fastclr.train.step import CapturedStep, EagerStep, Loss
from pipelines import BetonReader
from pipelines.beton import Files
from pipelines.contracts import Batch


def train(
    config: Config,
    file: Files | BetonReader,
    folder: Path,
    *,
    val: Files | None = None,
    fresh: bool = False,
    resume: bool = False,
    sinks: Sequence[Sink] = (),
    warm_up: Callable[["Pretraining"], None] | None = None,
) -> Outcome:
    """Train an encoder on the images of `file`; checkpoint, encoder and metrics go into `folder`.

    A run that `folder` holds is continued exactly where its checkpoint was written.  SIGINT, SIGTERM, SIGHUP and
    SIGUSR1 end it after the current step, with a checkpoint.  Under torchrun W ranks together see the batches of one;
    rank 0 writes the folder.

    Args:
        config: the recipe; settings that it leaves to `auto` are decided here, and written to config.toml.
        file: a `.beton` file, or several as one data set (`pipelines.beton.sets`); or an open reader, which stays open.
        folder: the run folder; made if it is missing.
        val: held-out images, likewise: their kNN accuracy is logged every `train.eval_epochs` epochs.
        fresh: an error if the folder holds a run.
        resume: an error if it holds none.
        sinks: called on rank 0 with each record of metrics.jsonl, a dict.
        warm_up: called on every rank with the task, before the first image is read (`fastclr.speedrun.warm_up`).

    Raises:
        ValueError: a setting that does not fit the file; a folder with a run of other settings or data; a corrupt
            checkpoint; a loss that is not finite, after which the last good checkpoint is kept.
        RankLost: another rank died, or hangs.
        OSError: a file that can't be read or written; a folder that another process trains in, or that `fresh` or
            `resume` rules out.
    """
    ranks = ranks_from_env()
    device = pick_device(config.train.device, ranks.local_rank, ranks.local_world_size, "--train.device")
    check_graph(config, device, ranks)
    if ranks.is_main:
        config.model.warn_of_ignored()
    with process_group(ranks, device), ExitStack() as stack:
        reader = (
            file
            if isinstance(file, BetonReader)
            else stack.enter_context(BetonReader(file, *config.field_names))
        )
        val_reader = None if val is None else stack.enter_context(BetonReader(val, *config.field_names))
        config = resolve(config, reader, device, ranks.local_world_size)

        def check() -> None:
            if val_reader is not None:
                check_val(reader, val_reader, ranks)

        def build() -> Pretraining:
            task = _build(config, reader, val_reader, ranks, device)
            if warm_up is not None:
                warm_up(task)
            # behind the warm-up, because it looks at images
            whiten_stem(config, reader, task.model, ranks)
            return task

        session = Session(
            config, reader, folder, ranks, device, run_identity(config, reader, ranks.world_size)
        )
        return session.run(build, check=check, fresh=fresh, resume=resume, sinks=sinks)


class Output(NamedTuple):
    """What the metrics of a step are computed from."""

    h: Tensor
    """[2n, num_features]."""
    z: Tensor
    """[2n, D]."""
    loss: LossConfig
    """Settings of the step's loss."""


@dataclass(frozen=True, eq=False)
class Pretraining:
    """SimCLR as a task of the training loop."""

    config: Config
    """Resolved."""
    model: SimCLR
    optimizer: torch.optim.Optimizer
    step: EagerStep | CapturedStep
    ranks: Ranks
    num_images: int
    """Images of the training file."""
    knn: OnlineKnn | None
    """kNN accuracy on held-out images."""

    loss_of: Callable[[LossConfig], Loss]
    """Function that makes a loss, always the same object for the same settings."""

    def take_step(self, batch: Batch, lr: float) -> tuple[Tensor, Output]:
        """Take a step; return its loss and what `metrics` takes."""
        settings = self.loss_settings(batch)
        loss, h, z = self.step(batch.views, lr, self.loss_of(settings))
        return loss, Output(h, z, settings)

    def loss_settings(self, batch: Batch) -> LossConfig:
        """Return the settings of the loss for a batch, by the share of the run done before it."""
        if not self.config.schedule:
            return self.config.loss
        train, steps_per_epoch = self.config.train, self.num_images // self.config.train.batch_size
        done = batch.epoch * steps_per_epoch + batch.step
        return self.config.loss_at(done / num_steps(self.num_images, train.epochs, train.batch_size))

    def metrics(self, output: Output) -> dict[str, float]:
        """Return contrastive accuracy and entropy of a step's z, and the effective rank of its h, over all ranks."""
        contrast = contrastive_metrics(output.z, output.loss.temperature, self.ranks.group)
        accuracy, entropy = mean_over_ranks(torch.stack(contrast), self.ranks).tolist()
        return {"accuracy": accuracy, "entropy": entropy, "rankme": batch_rank(output.h, self.ranks.group)}

    def evaluation_is_due(self, done: int) -> bool:
        """Whether there are held-out images, and their turn has come."""
        return self.knn is not None and evaluation_is_due(self.config, self.num_images, done)

    def evaluate(self) -> dict[str, float]:
        """Return the kNN accuracy on held-out images."""
        return {} if self.knn is None else {"val_knn": self.knn()}

    def export(self, folder: Path, done: int) -> None:
        """Write the encoder and the projection head."""
        export_encoder(folder / ENCODER, self.model.encoder, {**encoder_meta(self.config), "step": done})
        kwargs = projector_kwargs(self.config.model, self.model.encoder)
        export_projector(folder / PROJECTOR, self.model.projector, {"kwargs": kwargs, "step": done})


def _build(
    config: Config, reader: BetonReader, val: BetonReader | None, ranks: Ranks, device: torch.device
) -> Pretraining:
    """Build the task with fresh weights."""
    torch.manual_seed(config.train.seed)
    model = make_model(config.model, config.view_size).to(device).to(memory_format=torch.channels_last)
    if device.type == "cpu":
        check_memory(config, model, ranks.local_world_size, ranks.world_size)
    check_sizes(config, model.encoder, len(reader))
    optimizer = make_optimizer(config.optim, model, peak_lr(config))
    step = make_step(config, model, optimizer, ranks, device)
    loss_of = lru_cache(1)(partial(loss_function, group=ranks.group))
    knn = None if val is None else OnlineKnn(model.encoder, reader, val, config, ranks, device)
    return Pretraining(config, model, optimizer, step, ranks, len(reader), knn, loss_of)


def make_step(
    config: Config, model: SimCLR, optimizer: torch.optim.Optimizer, ranks: Ranks, device: torch.device
) -> EagerStep | CapturedStep:
    """Return a training step, (views, lr) → (loss, h, z), with the unscheduled loss; the config must be resolved.

    With several ranks the model's batch norms become global ones; its parameters stay the same.
    """
    train = config.train
    forward = data_parallel(model, ranks, compiled=train.compile, accumulates=train.micro_batch is not None)
    autocast = partial(torch.autocast, device.type, torch.bfloat16, train.precision == "bfloat16")
    loss_of = loss_function(config.loss, ranks.group)
    eager = EagerStep(forward, loss_of, optimizer, autocast, train.micro_batch)
    return CapturedStep(eager) if train.graph else eager


def loss_function(config: LossConfig, group: dist.ProcessGroup | None = None) -> Callable[[Tensor], Tensor]:
    """Return the loss that the config names, a function of z [2n, D]; rows of all ranks in `group` are negatives."""
    if config.name == "nt_xent":
        return lambda z: config.scale * nt_xent(z, config.temperature, group)
    if config.name == "nt_logistic":
        return lambda z: config.scale * nt_logistic(z, config.temperature, config.semi_hard, group)
    return lambda z: config.scale * margin_triplet(z, config.margin, config.semi_hard, group)
