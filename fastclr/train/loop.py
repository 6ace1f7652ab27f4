"""The training loop: learning rate → step → log, until the last step or until somebody asks it to stop."""

import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from signal import Signals
from typing import Any, TypeVar

import torch
from torch import nn

from fastclr.config import Config, flatten
from fastclr.loss import contrastive_metrics
from fastclr.optim import num_steps, num_warmup_steps, scaled_lr, warmup_cosine
from fastclr.train.checkpoint import differences, export_encoder, restore, run_state, save_checkpoint
from fastclr.train.distributed import Ranks, pick_device, process_group, ranks_from_env
from fastclr.train.meter import Meter, NotFinite
from fastclr.train.parts import loss_function, make_model, make_optimizer, resolve
from fastclr.train.run_folder import CHECKPOINT, ENCODER, new_run, saved_run, write_config
from fastclr.train.run_log import RunLog
from fastclr.train.stop import StopRequest
from pipelines import BetonReader, TwoViewLoader

MAY_CHANGE = {
    *("data.threads", "train.threads", "train.device", "train.compile", "optim.impl"),
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

    SIGINT and SIGTERM end it after the step that is under way, with a checkpoint.

    Args:
        config: the recipe; what it leaves to `auto` is decided here, and stands resolved in config.toml.
        file: a `.beton` file.
        folder: the run folder; made if it is missing.
        resume: continue the run in `folder` exactly where its checkpoint was written.

    Raises:
        ValueError: a setting that does not fit the file; a config or file that is not the resumed run's; a
            damaged checkpoint; a loss that is not finite, after which the last good checkpoint is kept.
        OSError: a file that can't be read or written; a folder that holds a run, or none to resume.
    """
    ranks = ranks_from_env()
    if ranks.world_size > 1:
        raise ValueError(
            f"training runs in one process, torchrun started {ranks.world_size}; start it without"
        )
    device = pick_device(config.train.device, ranks)
    saved = saved_run(folder, resume)
    with BetonReader(file) as reader, process_group(ranks, device):
        config = resolve(config, reader, device)
        if saved is not None:
            _check_same_run(folder, saved["identity"], _identity(config, reader))
        with _machine_settings(config), _make_loader(config, reader, ranks, device) as loader:
            try:
                return _train(config, loader, device, folder, saved)
            except NotFinite as error:
                raise ValueError(
                    f"{error}; {folder / CHECKPOINT} keeps the last good state: try a lower optim.base_lr, a "
                    f"longer warm-up, or train.precision float32"
                ) from error


def _train(
    config: Config, loader: TwoViewLoader, device: torch.device, folder: Path, saved: dict[str, Any] | None
) -> Outcome:
    torch.manual_seed(config.train.seed)
    model = make_model(config.model).to(device).to(memory_format=torch.channels_last)
    forward = torch.compile(model) if config.train.compile else model
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=config.train.precision == "bfloat16")
    loss_of = loss_function(config.loss)

    num_images, batch_size = len(loader.reader), config.train.batch_size
    total = num_steps(num_images, config.train.epochs, batch_size)
    warmup = num_warmup_steps(num_images, config.optim.warmup_epochs, batch_size)
    peak_lr = scaled_lr(config.optim.base_lr, batch_size, config.optim.scaling)
    optimizer = make_optimizer(config.optim, model, peak_lr)

    def save(step: int) -> None:
        _check_finite(model, step)
        export_encoder(folder / ENCODER, model.encoder, _encoder_meta(config, step))
        identity = _identity(config, loader.reader)
        save_checkpoint(folder / CHECKPOINT, run_state(step, identity, model, optimizer, loader))

    if saved is None:
        done = 0
        with new_run(folder):
            write_config(folder, config, loader.reader.path)
            save(done)
    else:
        done = restore(saved, model, optimizer, loader)

    meter, saved_at = Meter(), time.monotonic()
    with (
        StopRequest() as stop,
        RunLog(folder, done, total) as log,
        closing(meter.waiting(_endless(loader))) as batches,
    ):
        for step, batch in zip(range(done, total), batches, strict=False):
            lr = warmup_cosine(step, total, warmup, peak_lr)
            for group in optimizer.param_groups:
                group["lr"] = lr

            with autocast:
                _, z = forward(batch.views.flatten(0, 1))
            loss = loss_of(z)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

            done = step + 1
            meter.add(loss, len(batch))
            ending = bool(stop) or done == total
            saving = ending or time.monotonic() - saved_at > 60 * config.train.checkpoint_minutes
            if saving or done % config.train.log_every == 0:
                accuracy, entropy = contrastive_metrics(z.detach(), config.loss.temperature)
                contrast = {"accuracy": accuracy.item(), "entropy": entropy.item()}
                log.write({"step": done, "epoch": batch.epoch, "lr": lr, **contrast, **meter.read(done)})
            if saving:
                save(done)
                saved_at = time.monotonic()
            if ending:
                break
    return Outcome(done, total, stop.signal if done < total else None, **meter.overall())


def _endless(batches: Iterable[Item]) -> Iterator[Item]:
    """One epoch after the other."""
    while True:
        yield from batches


def _make_loader(config: Config, reader: BetonReader, ranks: Ranks, device: torch.device) -> TwoViewLoader:
    batch_size = config.train.batch_size
    if batch_size > len(reader):
        raise ValueError(
            f"{reader.path} holds {len(reader)} images, fewer than a batch of {batch_size}; "
            f"lower --train.batch-size"
        )
    return TwoViewLoader(
        reader,
        batch_size // ranks.world_size,
        spec=config.views,
        engine=config.data.engine,
        order=config.data.order,
        num_threads=config.data.threads,
        seed=config.train.seed,
        rank=ranks.rank,
        world_size=ranks.world_size,
        device=device,
        dtype=None if config.train.precision == "bfloat16" else torch.float32,
    )


@contextmanager
def _machine_settings(config: Config) -> Iterator[None]:
    """torch's process-wide settings for the duration of a run."""
    threads, benchmark = torch.get_num_threads(), torch.backends.cudnn.benchmark
    assert config.train.threads is not None
    torch.set_num_threads(config.train.threads)
    torch.backends.cudnn.benchmark = True  # shapes never change: let cuDNN look for the fastest convolutions
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.backends.cudnn.benchmark = benchmark


def _identity(config: Config, reader: BetonReader) -> dict[str, Any]:
    """What must be the same for a resumed run to be the same run."""
    settings = {name: value for name, value in flatten(config).items() if name not in MAY_CHANGE}
    return {**settings, "the data's fingerprint": reader.fingerprint}


def _check_same_run(folder: Path, saved: dict[str, Any], now: dict[str, Any]) -> None:
    changed = differences(saved, now)
    if changed:
        raise ValueError(
            f"{folder} can't be resumed with other settings: {'; '.join(changed)}; "
            f"set them back, or start a run in another --out"
        )


def _check_finite(model: nn.Module, step: int) -> None:
    """A finite loss says nothing of the weights that its own step has just made."""
    if not all(bool(p.isfinite().all()) for p in model.parameters()):
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
