"""The training loop: learning rate → step → log, until the last step or until somebody asks it to stop."""

import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from signal import Signals
from typing import Any, TypeVar

import torch
from torch import nn

from fastclr.config import Config, flatten
from fastclr.loss import contrastive_metrics
from fastclr.optim import num_steps, num_warmup_steps, scaled_lr, warmup_cosine
from fastclr.train.build import (
    check_batch,
    check_graph,
    make_loader,
    make_model,
    make_optimizer,
    make_step,
    resolve,
)
from fastclr.train.checkpoint import differences, export_encoder, restore, run_state, save_checkpoint
from fastclr.train.collective import agree, from_main, mean_over_ranks
from fastclr.train.distributed import Ranks, pick_device, process_group, ranks_from_env
from fastclr.train.memory import check_memory
from fastclr.train.meter import Meter, NotFinite
from fastclr.train.run_folder import CHECKPOINT, ENCODER, RunLock, new_run, saved_run, write_config
from fastclr.train.run_log import RunLog
from fastclr.train.stop import StopRequest
from pipelines import BetonReader, TwoViewLoader
from pipelines.system.threads import torch_threads

DATA_FINGERPRINT = "the data's fingerprint"
MAY_CHANGE = {
    *("data.threads", "train.threads", "train.device", "train.compile", "train.graph", "optim.impl"),
    *("train.log_every", "train.checkpoint_minutes"),
}
"""Settings that say how a run is computed and not what: a resumed run may have others."""

Item = TypeVar("Item")


@dataclass(frozen=True)
class Outcome:
    """How a call of `train` ended."""

    step: int
    """Steps done, over all lives of the run."""
    total_steps: int
    """Steps of the whole run."""
    stopped_by: Signals | None
    """The signal that ended it early; the run can then be resumed."""
    images_per_s: float
    """Source images per second of this call; checkpoints and log lines included."""
    data_wait: float
    """Share of this call's time that the loop spent waiting for data."""


def train(config: Config, file: Path, folder: Path, *, resume: bool = False) -> Outcome:
    """Train an encoder on the images of `file`; checkpoint, encoder and metrics go into `folder`.

    SIGINT and SIGTERM end it after the step that is under way, with a checkpoint.  Under torchrun W ranks see
    together the batches of one; rank 0 writes the folder, and after a restart the run goes on by itself.

    Args:
        config: the recipe; what it leaves to `auto` is decided here, and stands resolved in config.toml.
        file: a `.beton` file.
        folder: the run folder; made if it is missing.
        resume: continue the run in `folder` exactly where its checkpoint was written.

    Raises:
        ValueError: a setting that does not fit the file; a config or file that is not the resumed run's; a
            damaged checkpoint; a loss that is not finite, after which the last good checkpoint is kept.
        RankLost: another rank died, or hangs.
        OSError: a file that can't be read or written; a folder that holds a run, or none to resume.
    """
    ranks = ranks_from_env()
    device = pick_device(config.train.device, ranks)
    check_graph(config, device, ranks)
    with process_group(ranks, device), BetonReader(file) as reader, RunLock() as lock:
        config = resolve(config, reader, device, ranks.local_world_size)
        restarts, launched = agree(ranks, ranks.restarts, -int(ranks.launched))  # the nodes count their own
        since = -launched if restarts else None
        saved = from_main(ranks, lambda: _prepare(config, reader, ranks, folder, lock, resume, since))
        with _machine_settings(config), make_loader(config, reader, ranks, device) as loader:
            try:
                return _train(config, loader, ranks, device, folder, lock, saved)
            except NotFinite as error:
                raise ValueError(
                    f"{error}; {folder / CHECKPOINT} keeps the last good state: try a lower optim.base_lr, a "
                    f"longer warm-up, or train.precision float32, in a new --out"
                ) from error
            except torch.OutOfMemoryError as error:
                raise ValueError(
                    f"{device} has too little memory for a step of {config.train.batch_size // ranks.world_size} "
                    "images; lower --train.batch-size, or set --train.micro-batch to a part of it"
                ) from error


def _train(
    config: Config,
    loader: TwoViewLoader,
    ranks: Ranks,
    device: torch.device,
    folder: Path,
    lock: RunLock,
    saved: dict[str, Any] | None,
) -> Outcome:
    torch.manual_seed(config.train.seed)
    model = make_model(config.model).to(device).to(memory_format=torch.channels_last)
    if device.type == "cpu":
        check_memory(config, model, ranks.local_world_size, ranks.world_size)

    num_images, batch_size = len(loader.reader), config.train.batch_size
    total = num_steps(num_images, config.train.epochs, batch_size)
    warmup = num_warmup_steps(num_images, config.optim.warmup_epochs, batch_size)
    peak_lr = scaled_lr(config.optim.base_lr, batch_size, config.optim.scaling)
    optimizer = make_optimizer(config.optim, model, peak_lr)
    take_step = make_step(config, model, optimizer, ranks, device)

    def save(step: int) -> None:
        _check_finite(model, step)
        if ranks.is_main:
            export_encoder(folder / ENCODER, model.encoder, _encoder_meta(config, step))
            identity = _identity(config, loader.reader, ranks)
            state = run_state(step, identity, model, optimizer, loader)
            save_checkpoint(folder / CHECKPOINT, state)

    def start() -> None:
        with new_run(folder, lock):
            write_config(folder, config, loader.reader.path)
            save(0)

    if saved is None:
        from_main(ranks, start)
        done = 0
    else:
        done = restore(saved, model, optimizer, loader)

    if ranks.is_main:
        print(_opening(config, num_images, total, done), flush=True)
    meter, saved_at, stopped_by = Meter(ranks), time.monotonic(), 0
    with ExitStack() as stack:
        stop = stack.enter_context(StopRequest())
        log = stack.enter_context(RunLog(folder, done, total)) if ranks.is_main else None
        batches = stack.enter_context(closing(meter.waiting(_endless(loader))))
        for step, batch in zip(range(done, total), batches, strict=False):
            lr = warmup_cosine(step, total, warmup, peak_lr)
            loss, z = take_step(batch.views, lr)
            done = step + 1
            meter.add(loss, len(batch))
            overdue = time.monotonic() - saved_at > 60 * config.train.checkpoint_minutes
            stopped_by, saving = agree(ranks, stop.signal or 0, overdue)
            ending = stopped_by or done == total
            if ending or saving or done % config.train.log_every == 0:
                contrast = contrastive_metrics(z, config.loss.temperature, ranks.group)
                accuracy, entropy = mean_over_ranks(torch.stack(contrast), ranks).tolist()
                record = {
                    "step": done,
                    "epoch": batch.epoch,
                    "lr": lr,
                    "accuracy": accuracy,
                    "entropy": entropy,
                }
                record |= meter.read(done)
                if log is not None:
                    log.write(record)
            if ending or saving:
                save(done)
                saved_at = time.monotonic()
            if ending:
                break
    agree(ranks, 0)  # a rank that left now would have torchrun end rank 0 while it writes
    return Outcome(done, total, Signals(stopped_by) if done < total else None, **meter.overall())


def _opening(config: Config, num_images: int, total: int, done: int) -> str:
    """What is about to happen: the first step may take minutes."""
    model, train, data = config.model, config.train, config.data
    return (
        f"{num_images:,} images, {train.epochs:,} epochs, {total:,} steps of {train.batch_size:,}"
        + (f", from step {done:,} on" if done else "")
        + f"; ResNet-{model.depth} at {config.views.size} px in {train.precision} on {train.device}; "
        f"engine {data.engine}, {data.threads} loader thread{'' if data.threads == 1 else 's'}"
    )


def _endless(batches: Iterable[Item]) -> Iterator[Item]:
    """One epoch after the other."""
    while True:
        yield from batches


def _prepare(
    config: Config,
    reader: BetonReader,
    ranks: Ranks,
    folder: Path,
    lock: RunLock,
    resume: bool,
    restarted_since: float | None,
) -> dict[str, Any] | None:
    """Check what can be checked before anything is written; returns the checkpoint to continue, if there is."""
    check_batch(config.train, reader, ranks)
    saved = saved_run(folder, lock, resume, restarted_since)
    if saved is not None:
        identity = _identity(config, reader, ranks)
        # version 0.1 saved another form of the fingerprint
        if reader.matches_fingerprint(saved["identity"].get(DATA_FINGERPRINT)):
            identity[DATA_FINGERPRINT] = saved["identity"][DATA_FINGERPRINT]
        _check_same_run(folder, saved["identity"], identity)
    return saved


@contextmanager
def _machine_settings(config: Config) -> Iterator[None]:
    """torch's process-wide settings for the duration of a run."""
    benchmark = torch.backends.cudnn.benchmark
    assert config.train.threads is not None
    torch.backends.cudnn.benchmark = True  # shapes never change: let cuDNN look for the fastest convolutions
    try:
        with torch_threads(config.train.threads):
            yield
    finally:
        torch.backends.cudnn.benchmark = benchmark


def _identity(config: Config, reader: BetonReader, ranks: Ranks) -> dict[str, Any]:
    """What must be the same for a resumed run to be the same run."""
    settings = {name: value for name, value in flatten(config).items() if name not in MAY_CHANGE}
    micro_batch = settings.pop("train.micro_batch")
    if micro_batch is not None:  # batch norm sees as many images at a time; on other ranks, other ones
        settings["train.micro_batch times the ranks"] = micro_batch * ranks.world_size
    return {**settings, DATA_FINGERPRINT: reader.fingerprint}


def _check_same_run(folder: Path, saved: dict[str, Any], now: dict[str, Any]) -> None:
    changed = differences(saved, now)
    if changed:
        raise ValueError(
            f"{folder} can't be resumed with other settings: {'; '.join(changed)}; "
            f"take {folder} as the recipe, or start a run in another --out"
        )


def _check_finite(model: nn.Module, step: int) -> None:
    """A finite loss says nothing of the weights that its own step has just made."""
    state = [*model.parameters(), *model.buffers()]
    if not all(bool(tensor.isfinite().all()) for tensor in state):
        raise NotFinite(step, "the weights", "not finite")


def _encoder_meta(config: Config, step: int) -> dict[str, Any]:
    model, views = config.model, config.views
    return {
        "depth": model.depth,
        "width": model.width,
        "stem": model.stem,
        "sk_ratio": model.sk_ratio,
        "size": views.size,
        "mean": views.mean,
        "std": views.std,
        "precision": config.train.precision,
        "step": step,
    }
