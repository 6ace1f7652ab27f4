"""The training loop: learning rate → step → log, until the last step or until somebody asks it to stop."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from signal import Signals
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fastclr.config import Config, flatten
from fastclr.device import pick_device
from fastclr.loss import contrastive_metrics
from fastclr.model import SimCLR
from fastclr.optim import num_steps, num_warmup_steps, scaled_lr, warmup_cosine
from fastclr.train.build import (
    check_batch,
    check_graph,
    encoder_spec,
    make_loader,
    make_model,
    make_optimizer,
    make_step,
    resolve,
)
from fastclr.train.checkpoint import differences, restore, run_state, save_checkpoint
from fastclr.train.distributed import (
    Ranks,
    all_reduce_max,
    mean_over_ranks,
    process_group,
    ranks_from_env,
    run_on_main_and_broadcast,
)
from fastclr.train.encoder_file import encoder_title, export_encoder
from fastclr.train.memory import check_memory
from fastclr.train.meter import Meter, NotFinite
from fastclr.train.online_knn import OnlineKnn, check_val
from fastclr.train.run import CHECKPOINT, ENCODER, RunLock, never_stepped, new_run, saved_run, write_config
from fastclr.train.sinks import EventsFile, LiveLine, MetricsFile, Sink
from fastclr.train.stop import StopRequest
from pipelines import BetonReader, TwoViewLoader
from pipelines.beton import Files
from pipelines.system.output import say
from pipelines.system.threads import torch_threads
from pipelines.views.spec import RENAMED

DATA_FINGERPRINT = "the data's fingerprint"
MAY_CHANGE = {
    *("data.threads", "train.threads", "train.device", "train.compile", "train.graph", "optim.impl"),
    *("train.log_every", "train.checkpoint_minutes", "train.eval_epochs"),
}
"""Settings that say how a run is computed and not what: a resumed run may have others."""

RENAMED_SETTINGS = {f"views.{old}": f"views.{new}" for old, new in RENAMED.items()}
"""Names in the checkpoints of fastclr 0.1, and what they are called now."""

Item = TypeVar("Item")


@dataclass(frozen=True)
class Outcome:
    """How a call of `train` ended."""

    step: int
    """Steps done, over all lives of the run."""
    total_steps: int
    """Steps of the whole run."""
    stopped_by: Signals | None
    """The signal that ended it early; the same call continues the run."""
    images_per_s: float
    """Source images per second of this call; checkpoints and log lines included, evaluations not."""
    data_wait: float
    """Share of this call's time that the loop spent waiting for data."""
    first_step: int = 0
    """Steps that were done before this call; equal to `total_steps` if the run was complete."""


@dataclass(frozen=True)
class Run:
    """What a run works with, ready for its next step."""

    config: Config
    """Resolved."""
    ranks: Ranks
    device: torch.device
    folder: Path
    loader: TwoViewLoader
    model: SimCLR
    optimizer: torch.optim.Optimizer
    take_step: Callable[[Tensor, float], tuple[Tensor, Tensor]]
    """(views, learning rate) → (loss, z)."""
    learning_rate: Callable[[int], float]
    """Of a step, from 0."""
    total_steps: int
    knn: OnlineKnn | None
    """kNN accuracy on held-out images."""

    def knn_is_due(self, done: int) -> bool:
        """Whether `train.eval_epochs` epochs have passed again with the last of the steps done, or all."""
        if self.knn is None:
            return False
        images, interval = (
            self.config.train.batch_size,
            len(self.loader.reader) * self.config.train.eval_epochs,
        )
        return done == self.total_steps or done * images // interval > (done - 1) * images // interval

    def save(self, done: int) -> None:
        """Write checkpoint and encoder; rank 0 does it.

        Raises:
            NotFinite: the weights are not; nothing is written.
        """
        _check_finite(self.model, done)
        if self.ranks.is_main:
            meta = {**encoder_meta(self.config), "step": done}
            export_encoder(self.folder / ENCODER, self.model.encoder, meta)
            identity = _identity(self.config, self.loader.reader, self.ranks)
            state = run_state(done, identity, self.model, self.optimizer, self.loader)
            save_checkpoint(self.folder / CHECKPOINT, state)


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
    SIGUSR1 end it after the step that is under way, with a checkpoint.  Under torchrun W ranks see together the
    batches of one; rank 0 writes the folder.

    Args:
        config: the recipe; what it leaves to `auto` is decided here, and stands resolved in config.toml.
        file: a `.beton` file, or several as one data set (`pipelines.beton.sets`).
        folder: the run folder; made if it is missing.
        val: held-out images, likewise: their kNN accuracy is logged every `train.eval_epochs` epochs.
        fresh: an error if the folder holds a run.
        resume: an error if it holds none.
        sinks: called on rank 0 with each record of metrics.jsonl, a dict.

    Raises:
        ValueError: a setting that does not fit the file; a folder with a run of other settings or data; a damaged
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

        def prepare() -> dict[str, Any] | None:
            check_batch(config.train, reader, ranks)
            if val_reader is not None:
                check_val(reader, val_reader, ranks)
            saved = saved_run(folder, lock, fresh=fresh, resume=resume)
            return saved if _is_same_run(folder, saved, _identity(config, reader, ranks), reader) else None

        saved = run_on_main_and_broadcast(ranks, prepare)
        total = num_steps(len(reader), config.train.epochs, config.train.batch_size)
        if saved is not None and saved["step"] == total:
            return Outcome(total, total, None, 0.0, 0.0, first_step=total)
        stack.enter_context(_machine_settings(config))
        loader = stack.enter_context(make_loader(config, reader, ranks, device))
        try:
            run, done = _setup(config, loader, val_reader, ranks, device, folder, lock, saved)
            return _loop(run, done, sinks)
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


def _setup(
    config: Config,
    loader: TwoViewLoader,
    val: BetonReader | None,
    ranks: Ranks,
    device: torch.device,
    folder: Path,
    lock: RunLock,
    saved: dict[str, Any] | None,
) -> tuple[Run, int]:
    """Build the run, begin its folder or restore its state; returns it and the steps done."""
    torch.manual_seed(config.train.seed)
    model = make_model(config.model, config.views.size).to(device).to(memory_format=torch.channels_last)
    if device.type == "cpu":
        check_memory(config, model, ranks.local_world_size, ranks.world_size)
    num_images, batch_size = len(loader.reader), config.train.batch_size
    total = num_steps(num_images, config.train.epochs, batch_size)
    warmup = num_warmup_steps(num_images, config.optim.warmup_epochs, batch_size)
    peak_lr = scaled_lr(config.optim.base_lr, batch_size, config.optim.scaling)
    optimizer = make_optimizer(config.optim, model, peak_lr)
    take_step = make_step(config, model, optimizer, ranks, device)
    knn = None if val is None else OnlineKnn(model.encoder, loader.reader, val, config, ranks, device)
    run = Run(
        config=config,
        ranks=ranks,
        device=device,
        folder=folder,
        loader=loader,
        model=model,
        optimizer=optimizer,
        take_step=take_step,
        learning_rate=lambda step: warmup_cosine(step, total, warmup, peak_lr),
        total_steps=total,
        knn=knn,
    )

    def begin() -> None:
        with new_run(folder, lock):
            write_config(folder, config, loader.reader.path)
            run.save(0)

    if saved is None:
        run_on_main_and_broadcast(ranks, begin)
        return run, 0
    return run, restore(saved, model, optimizer, loader)


def _loop(run: Run, first_step: int, sinks: Sequence[Sink]) -> Outcome:
    """Take the steps that are left."""
    config, ranks, total, done = run.config, run.ranks, run.total_steps, first_step
    if ranks.is_main:
        say(_opening(run, first_step))
    meter, saved_at, signal = Meter(ranks), time.monotonic(), 0
    with ExitStack() as stack:
        stop = stack.enter_context(StopRequest())
        record_to, show_to = _open_sinks(run, first_step, sinks, stack)
        batches = stack.enter_context(closing(meter.timed(_endless(run.loader))))
        for step, batch in zip(range(first_step, total), batches, strict=False):
            lr = run.learning_rate(step)
            loss, z = run.take_step(batch.views, lr)
            done = step + 1
            meter.add(loss, len(batch))
            overdue = time.monotonic() - saved_at > 60 * config.train.checkpoint_minutes
            signal, saving = all_reduce_max(ranks, stop.signal or 0, overdue)
            ending = bool(signal) or done == total
            evaluating = not signal and run.knn_is_due(done)
            record: dict[str, Any] = {}
            if ending or saving or evaluating or done % config.train.log_every == 0:
                contrast = contrastive_metrics(z, config.loss.temperature, ranks.group)
                accuracy, entropy = mean_over_ranks(torch.stack(contrast), ranks).tolist()
                record = {"step": done, "epoch": batch.epoch, "lr": lr}
                record |= {"accuracy": accuracy, "entropy": entropy} | meter.flush(done)
                if evaluating and run.knn is not None:
                    with meter.paused():
                        record["val_knn"] = run.knn()
                for sink in record_to:
                    sink(record)
            if ending or saving:
                run.save(done)
                saved_at = time.monotonic()
            # saved first: whatever happens to what is shown, it costs no checkpoint
            if record:
                for sink in show_to:
                    sink(dict(record))
            if ending:
                break
    # a rank that left now would have torchrun end rank 0 while it writes
    all_reduce_max(ranks, 0)
    return Outcome(
        done, total, Signals(signal) if done < total else None, **meter.totals(), first_step=first_step
    )


def _open_sinks(
    run: Run, step: int, sinks: Sequence[Sink], stack: ExitStack
) -> tuple[list[Sink], list[Sink]]:
    """The sinks that a record goes to before the checkpoint is written, and those after it; none but on rank 0."""
    if not run.ranks.is_main:
        return [], []
    metrics = stack.enter_context(MetricsFile(run.folder, step))
    events = stack.enter_context(EventsFile(run.folder, step))
    line = stack.enter_context(LiveLine(step, run.total_steps))
    return [metrics], [events, line, *sinks]


def _opening(run: Run, done: int) -> str:
    """What is about to happen: the first step may take minutes."""
    config, data = run.config, run.config.data
    train = config.train
    return (
        f"{len(run.loader.reader):,} images, {train.epochs:,} epochs, {run.total_steps:,} steps of {train.batch_size:,}"
        + (f", from step {done:,} on" if done else "")
        + f"; {encoder_title(encoder_meta(config))} at {config.views.size} px in {train.precision} on {train.device}; "
        f"engine {data.engine}, {data.threads} loader thread{'' if data.threads == 1 else 's'}"
    )


def _endless(batches: Iterable[Item]) -> Iterator[Item]:
    """One epoch after the other."""
    while True:
        yield from batches


@contextmanager
def _machine_settings(config: Config) -> Iterator[None]:
    """torch's process-wide settings for the duration of a run."""
    benchmark = torch.backends.cudnn.benchmark
    assert config.train.threads is not None
    # shapes never change: let cuDNN look for the fastest convolutions
    torch.backends.cudnn.benchmark = True
    try:
        with torch_threads(config.train.threads):
            yield
    finally:
        torch.backends.cudnn.benchmark = benchmark


def _identity(config: Config, reader: BetonReader, ranks: Ranks) -> dict[str, Any]:
    """What must be the same for a run to be continued."""
    settings = {name: value for name, value in flatten(config).items() if name not in MAY_CHANGE}
    micro_batch = settings.pop("train.micro_batch")
    # batch norm sees as many images at a time; on other ranks, other ones
    if micro_batch is not None:
        settings["train.micro_batch times the ranks"] = micro_batch * ranks.world_size
    return {**settings, DATA_FINGERPRINT: reader.fingerprint}


def _is_same_run(
    folder: Path, saved: dict[str, Any] | None, now: dict[str, Any], reader: BetonReader
) -> bool:
    """Whether the run that the folder holds is to be continued; not if it is another one without a single step.

    Raises:
        ValueError: it is another run.
    """
    if saved is None:
        return False
    fingerprint = saved["identity"].get(DATA_FINGERPRINT)
    # version 0.1 saved another form of it
    if reader.matches_fingerprint(fingerprint):
        now = {**now, DATA_FINGERPRINT: fingerprint}
    settings = {RENAMED_SETTINGS.get(name, name): value for name, value in saved["identity"].items()}
    changed = differences(settings, now, flatten(Config()))
    if changed and never_stepped(folder):
        return False
    if changed:
        raise ValueError(
            f"{folder} holds a run with other settings: {'; '.join(changed)}; take {folder} as the recipe to continue "
            "it, or choose another --out"
        )
    return True


def _check_finite(model: nn.Module, step: int) -> None:
    """A finite loss says nothing of the weights that its own step has just made."""
    state = [*model.parameters(), *model.buffers()]
    if not all(bool(tensor.isfinite().all()) for tensor in state):
        raise NotFinite(step, "the weights", "not finite")


def encoder_meta(config: Config) -> dict[str, Any]:
    """What rebuilds and feeds the encoder of a run, as `export_encoder` takes it; the config must be resolved."""
    name, kwargs = encoder_spec(config.model, config.views.size)
    views = config.views
    return {
        "encoder": name,
        "kwargs": kwargs,
        "size": views.size,
        "mean": views.mean,
        "std": views.std,
        "precision": config.train.precision,
    }
