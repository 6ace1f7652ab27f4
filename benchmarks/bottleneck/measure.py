"""The measurements behind `bench bottleneck`.

The training step is timed in two ways in turns, and in a third way for developers of the loader:

    alone     on a canned batch, while the loader waits
    together  on the batches of a loader in this process, as in training
    beside    on a canned batch, while a loader in another process makes one batch per step

`beside` does the same work on the same cores as `together`, but the loader shares neither the GIL nor memory with the
training thread.  The difference is the cost of a loader on top of the cores that it takes.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from itertools import chain
from statistics import median

import torch

from benchmarks.bottleneck.recommend import Throughputs
from benchmarks.core.process import Worker, WorkFailed
from fastclr.config import Config
from fastclr.train.build import check_batch, check_graph, make_loader, make_model, make_optimizer, peak_lr
from fastclr.train.distributed import Ranks
from fastclr.train.loop import endless
from fastclr.train.pretrain import make_step
from fastclr.train.step import CapturedStep
from pipelines import Batch, BetonReader
from pipelines.beton import Files
from pipelines.system.threads import torch_threads

LOADER_SECONDS = 1.0
"""Duration of the measurement of the loader alone, per round."""
WORKER_TIMEOUT_S = 300.0
"""Time limit for a batch of the loader in another process, imports and compilation included."""


def measure_run(
    config: Config, reader: BetonReader, device: torch.device, rounds: int, steps: int, interference: bool
) -> Throughputs:
    """Measure a resolved config on a file: `rounds` times in turn, `steps` training steps each.

    Args:
        interference: measure the step beside a loader in another process, too.

    Raises:
        ValueError: the file is too small for a batch, or train.graph is not possible here.
        EngineUnavailable: the engine's library is missing.
    """
    check_batch(config.train, reader, Ranks(), len(reader))
    check_graph(config, device, Ranks())
    assert config.train.threads is not None
    with ExitStack() as stack:
        stack.enter_context(torch_threads(config.train.threads))
        loader = stack.enter_context(make_loader(config, reader, Ranks(), device))
        advance = None
        if interference:
            advance = stack.enter_context(loader_in_process(config, reader.files, device))
        batches = stack.enter_context(closing(endless(loader)))
        return _measure_rounds(config, batches, device, rounds, steps, advance)


def _measure_rounds(
    config: Config,
    batches: Iterator[Batch],
    device: torch.device,
    rounds: int,
    steps: int,
    advance: Callable[[], None] | None,
) -> Throughputs:
    """Take the rounds; `advance` waits for a batch of the loader in another process."""
    canned = next(batches)
    step = training_step(config, device)
    # memory, compiled kernels, cuDNN's choices; a graph's capture
    for _ in range(CapturedStep.WARM_UP + 1):
        step(canned)
    loader_s, alone, waits = list[float](), list[float](), list[float]()
    together: list[list[float]] = []
    beside: list[list[float]] = []

    def take_together() -> None:
        together.append([])
        for _ in range(steps):
            start = time.perf_counter()
            batch = next(batches)
            waits.append(time.perf_counter() - start)
            together[-1].append(_timed(step, batch, device))

    def take_beside(advance: Callable[[], None]) -> None:
        beside.append([])
        for _ in range(steps):
            advance()
            beside[-1].append(_timed(step, canned, device))

    for number in range(rounds):
        loader_s.append(_seconds_per_batch(batches))
        alone += [_timed(step, canned, device) for _ in range(steps)]
        # each goes first in every second round
        if advance is not None and number % 2:
            take_beside(advance)
        take_together()
        if advance is not None and not number % 2:
            take_beside(advance)
    images, all_together = config.train.batch_size, [*chain(*together)]
    return Throughputs(
        loader=images / median(loader_s),
        model=images / median(alone),
        together=images * len(all_together) / (sum(waits) + sum(all_together)),
        step_alone=median(alone),
        step=median(all_together),
        step_beside=median(chain(*beside)) if beside else None,
        slowdowns=[median(here) / median(there) for here, there in zip(together, beside, strict=False)],
    )


def training_step(config: Config, device: torch.device) -> Callable[[Batch], None]:
    """Return a step of the config's training, with fresh weights."""
    torch.manual_seed(config.train.seed)
    model = make_model(config.model, config.view_size).to(device).to(memory_format=torch.channels_last)
    lr = peak_lr(config) / 1000  # few steps, with no warm-up before them
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
    """Time the loader alone, after the batches that it had prefetched."""
    for _ in range(3):
        next(batches)
    count, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < LOADER_SECONDS or count < 4:
        next(batches)
        count += 1
    return elapsed / count


@contextmanager
def loader_in_process(config: Config, file: Files, device: torch.device) -> Iterator[Callable[[], None]]:
    """Run a loader in another process; calling the result waits until it has taken its next batch.

    The call raises a ChildProcessError if that loader fails; the message says why.
    """
    with closing(Worker(_batch_service, config, file, device)) as worker:

        def advance() -> None:
            try:
                worker.ask(None, WORKER_TIMEOUT_S)
            except WorkFailed as error:
                raise ChildProcessError(f"the loader in another process: {error}") from None

        advance()
        yield advance


@contextmanager
def _batch_service(config: Config, file: Files, device: torch.device) -> Iterator[Callable[[None], None]]:
    """Answer every request when the next batch is there."""
    with (
        BetonReader(file) as reader,
        make_loader(config, reader, Ranks(), device) as loader,
        closing(endless(loader)) as batches,
    ):

        def answer(_: None) -> None:
            next(batches)

        yield answer
