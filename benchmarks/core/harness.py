"""Interleaved measurements: every case has its own process, and the cases take turns round by round.

A machine's speed drifts by tens of per cent within minutes, so two numbers can be compared only if they were measured
in turns.  Its own process gives each case separate memory, threads and library settings: importing one peer would
change torch's thread count for all.
"""

import resource
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import psutil

from benchmarks.core.process import Worker, WorkFailed
from benchmarks.core.report import Row

WARM_BATCHES = 8
"""Batches at an epoch's start that are not counted, until every stage and worker of a loader is busy."""
LAST_BATCHES = 4
"""Batches at an epoch's end that are not counted: workers run out of work one by one."""
MIN_SECONDS = 1.0
"""Minimum counted time of a round; short epochs are repeated."""
CASE_TIMEOUT_S = 900
"""Time limit for opening a case and for a round, because some peers wait for ever when their thread dies.  The warm-up
of a slow peer, FFCV's compilation included, takes less than a third of it."""


class Case(Protocol):
    """A loader to measure.  It is pickled, because it is sent to the process that runs it."""

    @property
    def name(self) -> str: ...

    @property
    def lacks(self) -> str:
        """Operations of the benchmark that it lacks, for its row; "" if it has all."""
        ...

    def open(self) -> Any:
        """Make the loader.  EngineUnavailable: its package is missing; the message says what installs it."""
        ...

    def epoch(self, loader: Any) -> Generator[int]:
        """Run one epoch; yield the number of images of each batch as it arrives."""
        ...


@dataclass(frozen=True, kw_only=True)
class LoaderRow(Row):
    """Measurements of a loader."""

    lacks: str = ""
    """Operations that it lacks."""
    cpu_s_per_1000: list[float] = field(default_factory=list)
    """CPU seconds of all processes per 1000 source images, one value a round."""
    first_batch_s: float = 0.0
    """Time from making the loader to its first batch, with imports done and caches warm."""
    peak_bytes: int = 0
    """Resident memory in mid-epoch, of all its processes together."""


@dataclass(frozen=True)
class Round:
    """Measurements of one round."""

    images: int
    """Counted source images."""
    seconds: float
    """Counted time."""
    cpu_s_per_1000: float
    peak_bytes: int


def measure_in_turn(cases: list[Case], rounds: int) -> Iterator[list[LoaderRow]]:
    """Run all cases `rounds` times in turn; yield the rows so far after every round.

    A case that fails keeps its error in its row, and the others go on.
    """
    rows = [LoaderRow(name=case.name, lacks=case.lacks) for case in cases]
    with ExitStack() as stack:
        workers = [
            stack.enter_context(closing(Worker(_case_service, case, name=f"bench {case.name}")))
            for case in cases
        ]

        def ask(place: int, request: Literal["open", "round"]) -> Any:
            if rows[place].error:
                return None
            try:
                return workers[place].ask(request, CASE_TIMEOUT_S)
            except WorkFailed as error:
                rows[place] = replace(rows[place], error=str(error))
                return None

        for place in range(len(cases)):  # one case at a time, because the time to the first batch is measured
            if (first_batch_s := ask(place, "open")) is not None:
                rows[place] = replace(rows[place], first_batch_s=first_batch_s)
        for number in range(rounds):
            # another case first each time, so that none always follows the same neighbour
            for offset in range(len(cases)):
                place = (number + offset) % len(cases)
                if (found := ask(place, "round")) is not None:
                    rows[place] = _with_round(rows[place], found)
            yield list(rows)


def _with_round(row: LoaderRow, found: Round) -> LoaderRow:
    return replace(
        row,
        images_per_s=[*row.images_per_s, found.images / found.seconds],
        cpu_s_per_1000=[*row.cpu_s_per_1000, found.cpu_s_per_1000],
        peak_bytes=max(row.peak_bytes, found.peak_bytes),
    )


def _case_service(case: Case) -> AbstractContextManager[Callable[[str], Any]]:
    """Answer "open" with the seconds to the first batch, and "round" with a `Round`; in the case's process."""
    loader: Any = None

    def answer(request: str) -> Any:
        nonlocal loader
        if request == "round":
            return _round(case, loader)
        _warm_up(case)
        start = time.perf_counter()
        loader = case.open()
        epoch = case.epoch(loader)
        next(epoch)
        first_batch_s = time.perf_counter() - start
        epoch.close()
        return first_batch_s

    return nullcontext(answer)


def _warm_up(case: Case) -> None:
    """Run the case once, for imports, compilation and caches."""
    epoch = case.epoch(case.open())
    for number, _ in enumerate(epoch, 1):
        if number == WARM_BATCHES:
            break
    epoch.close()


def _round(case: Case, loader: Any) -> Round:
    """Count epochs until they fill MIN_SECONDS."""
    images, seconds, all_images, peaks = 0, 0.0, 0, list[int]()
    cpu_start = _cpu_seconds()
    while seconds < MIN_SECONDS:
        # memory is measured in the first epoch only, because it takes milliseconds
        midway = (lambda: peaks.append(_memory())) if not peaks else None
        counted, counted_s, epoch_images = count_middle(case.epoch(loader), midway=midway)
        images, seconds, all_images = images + counted, seconds + counted_s, all_images + epoch_images
    cpu_s = _cpu_seconds() - cpu_start
    return Round(images, seconds, 1000 * cpu_s / all_images, max(peaks))


def count_middle(
    epoch: Iterable[int],
    clock: Callable[[], float] = time.perf_counter,
    midway: Callable[[], None] | None = None,
) -> tuple[int, float, int]:
    """Count the images in the middle of an epoch, without its start and its end.

    Args:
        epoch: images of each batch, as it arrives.
        clock: returns seconds.
        midway: called once, before the counting begins.

    Returns:
        Images of the middle, its seconds, and the images of the whole epoch.

    Raises:
        ValueError: the epoch has too few batches to have a middle.
    """
    counted, all_images, start = 0, 0, 0.0
    marks: deque[tuple[int, float]] = deque(maxlen=LAST_BATCHES + 1)
    for number, count in enumerate(epoch):
        all_images += count
        if number == WARM_BATCHES:
            if midway is not None:
                midway()
            start = clock()
        elif number > WARM_BATCHES:
            counted += count
            marks.append((counted, clock()))
    if len(marks) <= LAST_BATCHES:
        minimum = WARM_BATCHES + LAST_BATCHES + 2
        raise ValueError(
            f"an epoch must have at least {minimum} batches to be measured; lower the batch size"
        )
    images, end = marks[0]
    return images, end - start, all_images


def _cpu_seconds() -> float:
    """Return the CPU seconds so far of this process and of its children, the finished ones included."""
    own, ended = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    alive = [child.cpu_times() for child in psutil.Process().children(recursive=True)]
    return sum(usage.ru_utime + usage.ru_stime for usage in (own, ended)) + sum(
        times.user + times.system for times in alive
    )


def _memory() -> int:
    """Return the resident bytes of this process and its children; shared pages count once, if the system tells them."""
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    infos = [process.memory_full_info() for process in processes]
    return sum(getattr(info, "pss", info.rss) for info in infos)
