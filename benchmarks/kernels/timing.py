"""Timing of functions within this process, in turns: on a GPU by its own clock, on a CPU by the wall clock.

Several variants of one computation take turns, round after round, and each starts another round: a machine's
speed drifts, so only numbers taken side by side can be compared.  A value is the median over a turn's calls; a
result is the median of its turns, with the lowest and highest beside it.

On a GPU a call lies between two events, and before each the L2 cache is filled with other data: repeated calls
would otherwise find their inputs there.  It is filled by reading, so that no write-back runs into the call.
`Variant.graph` replays the function as a CUDA graph, which leaves out the gaps between its launches: that is
the kernels' own time, while the plain form is what a script sees that does nothing else.
"""

import ctypes
import importlib.util
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, ClassVar, Protocol, TypeVar

import torch

from pipelines.errors import EngineUnavailable

FLUSH_BYTES = 256 << 20
"""Read before each call: five times an H100's L2 cache."""
MAX_CALLS = 50
"""Calls of a turn, at most."""

Function = Callable[[], Any]
Value = TypeVar("Value")


class NotMeasured(Exception):
    """A variant can't run here; the message says what is missing, and the command that installs it."""


@dataclass(frozen=True)
class Variant:
    """One way to compute what all variants of a group compute."""

    name: str
    make: Callable[[], Function]
    """Imports and prepares whatever it needs, and returns the function to time.  May raise `NotMeasured`."""
    graph: bool = False
    """Replay the function as a captured CUDA graph; it must not wait for the device."""
    check: Callable[[Any], dict[str, Any]] | None = None
    """Gives fields of the row from a call's result: its error, say."""
    note: str = ""
    """What sets it apart, where the name doesn't say."""


@dataclass(frozen=True)
class KernelRow:
    """What was measured of a variant."""

    name: str
    device: str
    """What it was measured on: "cpu", or the GPU's name."""
    method: str = ""
    """perf_counter, CUDA events, or CUDA graph."""
    note: str = ""
    turns_s: list[float] = field(default_factory=list)
    """Seconds of a call, one value a turn."""
    calls: int = 0
    """Timed calls in all."""
    peak_bytes: int | None = None
    """Memory that a call takes beside its inputs, its result included: on a GPU what torch allocates, on a CPU
    resident memory, which the allocator gives back when it likes; None: this platform doesn't tell."""
    error: str = ""
    """Why there is no number."""
    gradient_error: float | None = None
    """‖g − g₆₄‖ / ‖g₆₄‖ of a loss."""
    images_per_s: float | None = None
    """Source images per second."""
    views_per_s: float | None = None
    step_share: float | None = None
    """Time over that of a whole step."""
    data_wait_share: float | None = None
    """Share of a step spent waiting for its views."""
    slower_share: float | None = None
    """Share of a step that it takes longer for the loader beside it."""
    floor_s: float | None = None
    """The shortest time that the hardware allows; None on a CPU."""
    floor_share: float | None = None
    """Floor over time; 1 is as fast as the hardware allows."""
    target: str | None = None
    """Key of the target that is judged by this row."""
    derived: ClassVar[tuple[str, ...]] = ("median_s", "low_s", "high_s", "rounds")

    @property
    def median_s(self) -> float | None:
        return median(self.turns_s) if self.turns_s and not self.error else None

    @property
    def low_s(self) -> float | None:
        return min(self.turns_s) if self.turns_s and not self.error else None

    @property
    def high_s(self) -> float | None:
        return max(self.turns_s) if self.turns_s and not self.error else None

    @property
    def rounds(self) -> int:
        return len(self.turns_s)


def device_name(device: torch.device) -> str:
    return "cpu" if device.type == "cpu" else torch.cuda.get_device_name(device)


def require(package: str, install: str = "'fastclr[bench]'") -> None:
    """Raise `NotMeasured`, with the command that installs it, where a package is missing."""
    if importlib.util.find_spec(package) is None:
        raise NotMeasured(f"{package} is not installed: pip install {install}")


def check_cuda(device: torch.device) -> None:
    """Raise `NotMeasured` on a CPU."""
    if device.type != "cuda":
        raise NotMeasured("needs a CUDA device")


def measure(
    variants: Sequence[Variant],
    device: torch.device,
    *,
    rounds: int = 5,
    turn_s: float = 0.1,
    calls: int | None = None,
    mean_of_turn: bool = False,
    clock: Callable[[], float] = time.perf_counter,
) -> list[KernelRow]:
    """Time each variant in turns.  One that fails keeps its reason, and the others go on.

    Args:
        variants: what to compare; all of them are prepared before the first is timed.
        device: what they run on.
        rounds: turns of each variant.
        turn_s: seconds that a turn takes, about; at least three calls.
        calls: calls of a turn, instead of `turn_s`: ranks that wait for each other must agree on them.
        mean_of_turn: time all calls of a turn with one clock (mean) instead of each (median), so that rare stalls,
            as in waiting for data, count.  Otherwise a GPU's L2 cache is emptied of a call's inputs before it.
        clock: seconds, for a CPU; a GPU is timed by its own events.
    """
    rows = [KernelRow(v.name, device_name(device), _method(v, device), v.note) for v in variants]
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        timer = _CpuTimer(clock) if device.type == "cpu" else _GpuTimer(device)
        prepared: list[_Prepared | None] = []
        for place, variant in enumerate(variants):
            found, error = _attempt(partial(_prepare, variant, device, timer, turn_s, calls))
            prepared.append(found)
            rows[place] = replace(rows[place], error=error, **(found.figures if found else {}))
        for number in range(rounds):
            for offset in range(len(variants)):
                place = (number + offset) % len(variants)
                row, ready = rows[place], prepared[place]
                if ready is None or row.error:
                    continue
                turn, error = _attempt(partial(_turn, ready.function, ready.calls, timer, mean_of_turn))
                if turn is None:
                    rows[place] = replace(row, error=error)
                else:
                    rows[place] = replace(row, turns_s=[*row.turns_s, turn], calls=row.calls + ready.calls)
    return rows


def _method(variant: Variant, device: torch.device) -> str:
    if device.type == "cpu":
        return "perf_counter"
    return "CUDA graph" if variant.graph else "CUDA events"


def _attempt(action: Callable[[], Value]) -> tuple[Value | None, str]:
    """Return what the action returns, or why it could not be done."""
    try:
        return action(), ""
    except NotMeasured as reason:
        return None, str(reason)
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return None, "out of memory"
    except (ValueError, OSError, EngineUnavailable) as error:  # options that exclude each other
        return None, " ".join(str(error).split())
    except Exception as error:
        traceback.print_exc(file=sys.stderr)
        return None, f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


@dataclass(frozen=True)
class _Prepared:
    """A variant that is ready to be timed."""

    function: Function
    calls: int
    """Calls of a turn."""
    figures: dict[str, Any]
    """Fields of its row that are known beforehand."""


def _prepare(
    variant: Variant, device: torch.device, timer: "_Timer", turn_s: float, calls: int | None
) -> _Prepared:
    """Warm the function up, and choose how often a turn calls it."""
    if variant.graph:
        check_cuda(device)
    function = variant.make()
    result = function()  # compiles
    figures = {} if variant.check is None else variant.check(result)
    del result
    figures["peak_bytes"] = _peak_bytes(function, device)
    if variant.graph:
        function = captured(function)
        function()
    once = _turn(function, 1, timer)
    return _Prepared(function, calls or min(max(int(turn_s / max(once, 1e-9)), 3), MAX_CALLS), figures)


def _turn(function: Function, calls: int, timer: "_Timer", mean_of_turn: bool = False) -> float:
    """Return the seconds of a call, after one that isn't counted: the median, or the mean, of so many calls."""
    function()
    if mean_of_turn:
        return timer.seconds(function, 1, calls, flush=False)[0] / calls
    return median(timer.seconds(function, calls, 1))


class _Timer(Protocol):
    """A clock for calls."""

    def seconds(self, function: Function, repeats: int, inner: int, flush: bool = True) -> list[float]:
        """Return the seconds of each of `repeats` blocks of `inner` calls.

        Args:
            flush: whether each block finds the inputs outside a GPU's L2 cache.
        """
        ...


class _CpuTimer:
    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock

    def seconds(self, function: Function, repeats: int, inner: int, flush: bool = True) -> list[float]:
        marks = [self._clock()]
        for _repeat in range(repeats):
            for _call in range(inner):
                function()
            marks.append(self._clock())
        return [after - before for before, after in pairwise(marks)]


class _GpuTimer:
    """CUDA events, between which the L2 cache has been filled with data that no variant reads."""

    def __init__(self, device: torch.device) -> None:
        self._other_data = torch.ones(FLUSH_BYTES // 4, device=device)

    def seconds(self, function: Function, repeats: int, inner: int, flush: bool = True) -> list[float]:
        events = []
        torch.cuda.synchronize()
        for _repeat in range(repeats):
            if flush:
                self._other_data.amax()
            start, end = (torch.cuda.Event(enable_timing=True) for _event in range(2))
            start.record()
            for _call in range(inner):
                function()
            end.record()
            events.append((start, end))
        torch.cuda.synchronize()
        return [start.elapsed_time(end) / 1000 for start, end in events]


def captured(function: Function) -> Function:
    """Return a function that replays the function's launches as one CUDA graph; its inputs must stay where they are."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):  # libraries make their workspaces, the allocator its blocks
            function()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    # thread_local: a loader's threads may allocate meanwhile, which is not part of the capture
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        result = function()

    def replay() -> Any:
        graph.replay()
        return result

    return replay


def _peak_bytes(function: Function, device: torch.device) -> int | None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        function()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    try:
        ctypes.CDLL(None).malloc_trim(0)  # what the allocator keeps for later would hide what a call takes
        Path("/proc/self/clear_refs").write_text("5")  # Linux: the high-water mark falls to what is used now
        before = _status_bytes("VmHWM")
        function()
        return _status_bytes("VmHWM") - before
    except (OSError, AttributeError, KeyError):  # not Linux, not glibc, no such mark
        return None


def _status_bytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(dict(line.split(":", 1) for line in lines)[name].split()[0]) * 1024
