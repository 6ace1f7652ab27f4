"""Interleaved measurements: every case in a process of its own, one round of each in turn.

A machine's speed drifts by tens of per cent within minutes, so two numbers can be compared only if they were
taken in turns.  A process of its own gives each case its own memory, threads and library settings (importing
one peer changes torch's thread count for all).
"""

import multiprocessing
import resource
import time
import traceback
from collections import deque
from collections.abc import Generator, Iterator
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from statistics import median
from typing import Any, Protocol

import psutil

from pipelines.errors import EngineUnavailable

WARM_BATCHES = 8
"""Batches of an epoch that are not counted: until every stage and worker of a loader is at work."""
LAST_BATCHES = 4
"""Batches at an epoch's end that are not counted: workers run out of work one by one."""
MIN_SECONDS = 1.0
"""Counted time of a round; short epochs are repeated."""
PATIENCE_S = 900
"""A case that takes longer to open, or for a round, is given up: some peers wait for ever when their thread dies."""


class Case(Protocol):
    """Something that yields images.  Picklable: it is sent to the process that runs it."""

    @property
    def name(self) -> str: ...

    @property
    def lacks(self) -> str:
        """Operations of the benchmark that it does not do, for its row; "" for none."""
        ...

    def open(self) -> Any:
        """Make the loader.  EngineUnavailable: its package is missing; the message says what installs it."""
        ...

    def epoch(self, loader: Any) -> Generator[int]:
        """One epoch; yields the number of images of each batch as it arrives."""
        ...


@dataclass
class Result:
    """What was measured of a case."""

    name: str
    lacks: str = ""
    """Operations that it does not do."""
    images_per_s: list[float] = field(default_factory=list)
    """Source images per second, one value a round."""
    cpu_s_per_1000: list[float] = field(default_factory=list)
    """CPU seconds of all processes per 1000 source images, one value a round."""
    first_batch_s: float = 0.0
    """From making the loader to its first batch, with imports done and caches warm."""
    peak_bytes: int = 0
    """Resident memory in mid-epoch, of all its processes together."""
    error: str = ""
    """Why it could not be measured."""

    @property
    def median(self) -> float:
        return median(self.images_per_s) if self.images_per_s else 0.0

    def as_json(self) -> dict[str, Any]:
        values = sorted(self.images_per_s)
        spread = {"low": values[0], "high": values[-1]} if values else {}
        return {**asdict(self), "median": self.median, **spread, "rounds": len(values)}


def measure(cases: list[Case], rounds: int) -> Iterator[list[Result]]:
    """Run all cases `rounds` times in turn; yields the results so far after every round.

    A case that fails keeps its error in its result, and the others go on.
    """
    context = multiprocessing.get_context("spawn")
    results = [Result(case.name, case.lacks) for case in cases]
    workers: list[tuple[Any, Connection]] = []
    try:
        for case in cases:
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_serve,
                args=(case, theirs, multiprocessing.get_start_method()),
                name=f"bench {case.name}",
            )
            process.start()
            theirs.close()
            workers.append((process, ours))
        for result, worker in zip(results, workers, strict=True):  # one at a time: the first batch is timed
            _ask(worker, result, "open")
        for number in range(rounds):
            # another case first each time, so that none always follows the same neighbour
            for offset in range(len(cases)):
                place = (number + offset) % len(cases)
                _ask(workers[place], results[place], "round")
            yield results
    finally:
        for process, pipe in workers:
            pipe.close()
            process.join(20)
            if process.is_alive():
                process.kill()


def _ask(worker: tuple[Any, Connection], result: Result, what: str) -> None:
    process, pipe = worker
    if result.error:
        return
    try:
        pipe.send(what)
        if not pipe.poll(PATIENCE_S):
            process.kill()
            result.error = f"no answer in {PATIENCE_S} seconds"
            return
        answer = pipe.recv()
    except (EOFError, OSError) as error:
        result.error = f"its process died ({type(error).__name__})"
        return
    if "error" in answer:
        result.error = answer["error"]
    elif what == "open":
        result.first_batch_s = answer["first_batch_s"]
    else:
        result.images_per_s.append(answer["images"] / answer["seconds"])
        result.cpu_s_per_1000.append(answer["cpu_s_per_1000"])
        result.peak_bytes = max(result.peak_bytes, answer["peak_bytes"])


def _serve(case: Case, pipe: Connection, start_method: str) -> None:
    """The measuring process: answers "open" and "round" until the other end is closed."""
    # workers of a peer start as they would in a user's script, not as this process did
    multiprocessing.set_start_method(start_method, force=True)
    loader = None
    while True:
        try:
            what = pipe.recv()
        except EOFError:
            return
        try:
            if what == "open":
                _warm_up(case)
                start = time.perf_counter()
                loader = case.open()
                epoch = case.epoch(loader)
                next(epoch)
                pipe.send({"first_batch_s": time.perf_counter() - start})
                epoch.close()
            else:
                pipe.send(_round(case, loader))
        except EngineUnavailable as error:
            pipe.send({"error": str(error)})
        except Exception as error:
            traceback.print_exc()
            pipe.send({"error": _in_one_line(error)})


def _in_one_line(error: Exception) -> str:
    """Of an error that carries another's traceback, as one of a DataLoader's worker does, the last line."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1] if len(lines) > 1 else f"{type(error).__name__}: {error}"


def _warm_up(case: Case) -> None:
    """Imports, compiles, makes what is made once."""
    epoch = case.epoch(case.open())
    for number, _ in enumerate(epoch, 1):
        if number == WARM_BATCHES:
            break
    epoch.close()


def _round(case: Case, loader: Any) -> dict[str, float]:
    """Count the middle of as many epochs as fill MIN_SECONDS: neither the start nor the end of an epoch."""
    images, seconds, all_images, peak = 0, 0.0, 0, 0
    cpu_start = _cpu_seconds()
    while seconds < MIN_SECONDS:
        counted, start = 0, 0.0
        marks: deque[tuple[int, float]] = deque(maxlen=LAST_BATCHES + 1)
        for number, count in enumerate(case.epoch(loader)):
            all_images += count
            if number == WARM_BATCHES:
                peak = peak or _memory()  # in the first epoch: asking takes milliseconds
                start = time.perf_counter()
            elif number > WARM_BATCHES:
                counted += count
                marks.append((counted, time.perf_counter()))
        if len(marks) <= LAST_BATCHES:
            need = WARM_BATCHES + LAST_BATCHES + 2
            raise ValueError(
                f"an epoch must have at least {need} batches to be measured; lower the batch size"
            )
        images += marks[0][0]
        seconds += marks[0][1] - start
    cpu_s = _cpu_seconds() - cpu_start
    return {
        "images": images,
        "seconds": seconds,
        "cpu_s_per_1000": 1000 * cpu_s / all_images,
        "peak_bytes": peak,
    }


def _cpu_seconds() -> float:
    """CPU seconds so far of this process and of its children, the finished ones included."""
    ours, ended = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    alive = [child.cpu_times() for child in psutil.Process().children(recursive=True)]
    return sum(one.ru_utime + one.ru_stime for one in (ours, ended)) + sum(
        one.user + one.system for one in alive
    )


def _memory() -> int:
    """Resident bytes of this process and its children, pages that they share counted once (where it is told)."""
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    infos = [process.memory_full_info() for process in processes]
    return sum(getattr(info, "pss", info.rss) for info in infos)
