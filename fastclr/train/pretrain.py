"""Pre-training, the task of `fastclr train`: SimCLR on the images of a `.beton` file, by a config."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from fastclr.config import Config, LossConfig
from fastclr.device import pick_device
from fastclr.evaluate.rankme import batch_rank
from fastclr.loss import contrastive_metrics, margin_triplet, nt_logistic, nt_xent
from fastclr.model import SimCLR
from fastclr.optim import num_steps, num_warmup_steps, scaled_lr, warmup_cosine
from fastclr.train.build import (
    check_batch,
    check_graph,
    check_memory,
    check_sizes,
    encoder_spec,
    make_loader,
    make_model,
    make_optimizer,
    resolve,
    view_sizes,
    whiten_stem,
)
from fastclr.train.distributed import (
    Ranks,
    data_parallel,
    mean_over_ranks,
    process_group,
    ranks_from_env,
    run_on_main_and_broadcast,
)
from fastclr.train.encoder_file import ENCODER, encoder_title, export_encoder
from fastclr.train.loop import Outcome, Run, failures_explained, run_steps
from fastclr.train.online_knn import OnlineKnn, check_val
from fastclr.train.run import RunLock, is_same_run, run_identity, saved_run
from fastclr.train.sinks import Sink
from fastclr.train.step import CapturedStep, EagerStep, Loss
from pipelines import BetonReader, ViewLoader
from pipelines.beton import Files
from pipelines.contracts import Batch
from pipelines.system.output import say
from pipelines.system.threads import torch_threads


def train(
    config: Config,
    file: Files,
    folder: Path,
    *,
    val: Files | None = None,
    fresh: bool = False,
    resume: bool = False,
    sinks: Sequence[Sink] = (),
) -> Outcome:
    """Train an encoder on the images of `file`; checkpoint, encoder and metrics go into `folder`.

    A run that `folder` holds is continued exactly where its checkpoint was written.  SIGINT, SIGTERM, SIGHUP and
    SIGUSR1 end it after the current step, with a checkpoint.  Under torchrun W ranks together see the batches of one;
    rank 0 writes the folder.

    Args:
        config: the recipe; settings that it leaves to `auto` are decided here, and written to config.toml.
        file: a `.beton` file, or several as one data set (`pipelines.beton.sets`).
        folder: the run folder; made if it is missing.
        val: held-out images, likewise: their kNN accuracy is logged every `train.eval_epochs` epochs.
        fresh: an error if the folder holds a run.
        resume: an error if it holds none.
        sinks: called on rank 0 with each record of metrics.jsonl, a dict.

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
        reader = stack.enter_context(BetonReader(file))
        val_reader = None if val is None else stack.enter_context(BetonReader(val))
        lock = stack.enter_context(RunLock())
        config = resolve(config, reader, device, ranks.local_world_size)
        identity = run_identity(config, reader, ranks.world_size)

        def prepare() -> dict[str, Any] | None:
            check_batch(config.train, reader, ranks)
            if val_reader is not None:
                check_val(reader, val_reader, ranks)
            saved = saved_run(folder, lock, fresh=fresh, resume=resume)
            return saved if is_same_run(folder, saved, identity, reader) else None

        saved = run_on_main_and_broadcast(ranks, prepare)
        total = num_steps(len(reader), config.train.epochs, config.train.batch_size)
        if saved is not None and saved["step"] == total:
            return Outcome(total, total, None, 0.0, 0.0, first_step=total)
        stack.enter_context(_machine_settings(config))
        stack.enter_context(failures_explained(folder, device, config.train.batch_size // ranks.world_size))
        loader = stack.enter_context(make_loader(config, reader, ranks, device))
        task, learning_rate = _build(config, loader, val_reader, ranks, device)
        run = Run(task, config, ranks, folder, loader, identity, learning_rate, total)
        done = run.start(saved, lock)
        if ranks.is_main:
            say(_opening(run, done))
        return run_steps(run, done, sinks)


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
        """Whether step `done` completes another `train.eval_epochs` epochs, or the run."""
        if self.knn is None:
            return False
        train = self.config.train
        images, interval = train.batch_size, self.num_images * train.eval_epochs
        total = num_steps(self.num_images, train.epochs, train.batch_size)
        return done == total or done * images // interval > (done - 1) * images // interval

    def evaluate(self) -> dict[str, float]:
        """Return the kNN accuracy on held-out images."""
        return {} if self.knn is None else {"val_knn": self.knn()}

    def export(self, folder: Path, done: int) -> None:
        """Write the encoder."""
        export_encoder(folder / ENCODER, self.model.encoder, {**encoder_meta(self.config), "step": done})


def _build(
    config: Config, loader: ViewLoader, val: BetonReader | None, ranks: Ranks, device: torch.device
) -> tuple[Pretraining, Callable[[int], float]]:
    """Build the task with fresh weights, and its learning rate by step."""
    torch.manual_seed(config.train.seed)
    model = make_model(config.model, config.view_size).to(device).to(memory_format=torch.channels_last)
    whiten_stem(config, loader.reader, model)
    if device.type == "cpu":
        check_memory(config, model, ranks.local_world_size, ranks.world_size)
    num_images, batch_size = len(loader.reader), config.train.batch_size
    check_sizes(config, model.encoder, num_images)
    total = num_steps(num_images, config.train.epochs, batch_size)
    warmup = num_warmup_steps(num_images, config.optim.warmup_epochs, batch_size)
    peak_lr = scaled_lr(config.optim.base_lr, batch_size, config.optim.scaling)
    optimizer = make_optimizer(config.optim, model, peak_lr)
    step = make_step(config, model, optimizer, ranks, device)
    loss_of = lru_cache(1)(partial(loss_function, group=ranks.group))
    knn = None if val is None else OnlineKnn(model.encoder, loader.reader, val, config, ranks, device)
    task = Pretraining(config, model, optimizer, step, ranks, num_images, knn, loss_of)
    return task, lambda step: warmup_cosine(step, total, warmup, peak_lr)


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


def encoder_meta(config: Config) -> dict[str, Any]:
    """Return the metadata that rebuild the encoder of a run and make its images; the config must be resolved."""
    name, kwargs = encoder_spec(config.model, config.view_size)
    spec = config.view_specs[0]
    return {
        "encoder": name,
        "kwargs": kwargs,
        "size": config.eval_size,
        "mean": spec.mean,
        "std": spec.std,
        "precision": config.train.precision,
    }


def _opening(run: Run, done: int) -> str:
    """Return a line about the run, printed first because the first step may take minutes."""
    config, data = run.config, run.config.data
    train = config.train
    sizes = ", ".join(map(str, view_sizes(config, len(run.loader.reader))))
    return (
        f"{len(run.loader.reader):,} images, {train.epochs:,} epochs, {run.total_steps:,} steps of {train.batch_size:,}"
        + (f", from step {done:,} on" if done else "")
        + f"; {encoder_title(encoder_meta(config))} at {sizes} px in {train.precision} on {train.device}; "
        f"engine {data.engine}, {data.threads} loader thread{'' if data.threads == 1 else 's'}"
        + (f"; schedule: {'; '.join(map(str, config.schedule))}" if config.schedule else "")
        + (f"; evaluated at {config.eval_size} px" if config.eval_size != config.view_size else "")
    )


@contextmanager
def _machine_settings(config: Config) -> Iterator[None]:
    """Change torch's process-wide settings for the duration of a run."""
    benchmark = torch.backends.cudnn.benchmark
    assert config.train.threads is not None
    # shapes change rarely (by a schedule) or never: let cuDNN look for the fastest convolutions
    torch.backends.cudnn.benchmark = True
    try:
        with torch_threads(config.train.threads):
            yield
    finally:
        torch.backends.cudnn.benchmark = benchmark
