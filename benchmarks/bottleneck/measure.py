"""The measurements behind a verdict.

The training step is timed in three ways, in turns:

    alone     on a canned batch, the loader waiting
    beside    on a canned batch, while a loader in another process makes a batch per step
    together  on the batches of a loader in this process, as in training

`beside` has the same work on the same cores as `together`, but shares neither Python's lock nor memory with the
training thread: the difference is what a loader costs on top of the cores that it takes.
"""

import multiprocessing
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.bottleneck.recommend import Speeds
from fastclr.config import Config
from fastclr.optim import scaled_lr
from fastclr.train.build import check_batch, check_graph, make_loader, make_model, make_optimizer, make_step
from fastclr.train.distributed import Ranks
from fastclr.train.step import CapturedStep
from pipelines import Batch, BetonReader, EngineUnavailable
from pipelines.system.threads import torch_threads

LOADER_SECONDS = 1.0
"""Time that the loader alone is measured for in each round."""
PATIENCE_S = 300.0
"""The loader in another process is given up after it."""


def measure_run(config: Config, reader: BetonReader, device: torch.device, rounds: int, steps: int) -> Speeds:
    """Measure a resolved config on a file: `rounds` times in turn, `steps` training steps each.

    Raises:
        ValueError: the file is too small for a batch; train.graph can't be had.
        EngineUnavailable: the engine's library is missing.
    """
    check_batch(config.train, reader, Ranks())
    check_graph(config, device, Ranks())
    images = config.train.batch_size
    assert config.train.threads is not None
    with (
        torch_threads(config.train.threads),
        make_loader(config, reader, Ranks(), device) as loader,
        _loader_elsewhere(config, reader.path, device) as elsewhere,
    ):
        batches = _endless(loader)
        canned = next(batches)
        step = training_step(config, device)
        for _ in range(
            CapturedStep.WARM_UP + 1
        ):  # memory, compiled kernels, cuDNN's choices; a graph's capture
            step(canned)
        loader_s, alone, beside, together, waits = [], [], [], [], []
        for number in range(rounds):
            loader_s.append(_seconds_per_batch(batches))
            alone += [_timed(step, canned, device) for _ in range(steps)]
            for way in ("beside", "together") if number % 2 else ("together", "beside"):
                for _ in range(steps):
                    if way == "beside":
                        elsewhere()
                        beside.append(_timed(step, canned, device))
                    else:
                        start = time.perf_counter()
                        batch = next(batches)
                        waits.append(time.perf_counter() - start)
                        together.append(_timed(step, batch, device))
        batches.close()
    turns = [slice(first, first + steps) for first in range(0, rounds * steps, steps)]
    return Speeds(
        loader=images / median(loader_s),
        model=images / median(alone),
        together=images * len(together) / (sum(waits) + sum(together)),
        step_alone=median(alone),
        step_beside=median(beside),
        step=median(together),
        slowdowns=tuple(median(together[turn]) / median(beside[turn]) for turn in turns),
    )


def training_step(config: Config, device: torch.device) -> Callable[[Batch], None]:
    """A step of the config's training, with fresh weights."""
    torch.manual_seed(config.train.seed)
    model = make_model(config.model, config.views.size).to(device).to(memory_format=torch.channels_last)
    peak_lr = scaled_lr(config.optim.base_lr, config.train.batch_size, config.optim.scaling)
    lr = peak_lr / 1000  # few steps, with no warm-up before them
    take_step = make_step(config, model, make_optimizer(config.optim, model, lr), Ranks(), device)

    def step(batch: Batch) -> None:
        take_step(batch.views, lr)

    return step


def _timed(step: Callable[[Batch], None], batch: Batch, device: torch.device) -> float:
    start = time.perf_counter()
    step(batch)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def _seconds_per_batch(batches: Iterator[Batch]) -> float:
    """Of the loader alone, after those batches that it had ready."""
    for _ in range(3):
        next(batches)
    count, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < LOADER_SECONDS or count < 4:
        next(batches)
        count += 1
    return elapsed / count


def _endless(loader: Any) -> Any:
    while True:
        yield from loader


@contextmanager
def _loader_elsewhere(config: Config, file: Path, device: torch.device) -> Iterator[Callable[[], None]]:
    """A loader in another process; calling the result waits until it has taken its next batch."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, config, file, device), daemon=True)
    process.start()
    theirs.close()

    def advance() -> None:
        try:
            ours.send(None)
            if not ours.poll(PATIENCE_S):
                raise RuntimeError("the loader in another process does not answer")
            error = ours.recv()
        except (EOFError, ConnectionError):
            raise ChildProcessError("the loader in another process died; what it said is above") from None
        if error:
            raise ValueError(f"the loader in another process: {error}")

    try:
        advance()
        yield advance
    finally:
        ours.close()
        process.join(10)
        if process.is_alive():
            process.kill()


def _serve(pipe: Connection, config: Config, file: Path, device: torch.device) -> None:
    """Answers every request: with "" when a batch is taken, or with why none is."""
    with closing(_batches(config, file, device)) as batches:
        for _ in _requests(pipe):
            try:
                next(batches)
                answer = ""
            except (ValueError, OSError, EngineUnavailable) as error:
                answer = " ".join(str(error).split())
            pipe.send(answer)


def _batches(config: Config, file: Path, device: torch.device) -> Generator[Batch]:
    """Epoch after epoch; the file is opened for the first batch."""
    with BetonReader(file) as reader, make_loader(config, reader, Ranks(), device) as loader:
        yield from _endless(loader)


def _requests(pipe: Connection) -> Iterator[None]:
    """What comes through the pipe, until its other end is closed: then the measurement is over."""
    while True:
        try:
            pipe.recv()
        except (EOFError, ConnectionError):
            return
        yield
