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
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch

from pipelines.errors import EngineUnavailable

FLUSH_BYTES = 256 << 20
"""Read before each call: five times an H100's L2 cache."""
MAX_CALLS = 50
"""Calls of a turn, at most."""

Function = Callable[[], Any]


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
    """Figures of a call's result, for the row (its error, say)."""
    note: str = ""
    """What sets it apart, where the name doesn't say."""


@dataclass
class Timing:
    """What was measured of a variant."""

    name: str
    device: str
    """What it was measured on: "cpu", or the GPU's name."""
    method: str
    """perf_counter, CUDA events, or CUDA graph."""
    note: str = ""
    turns_s: list[float] = field(default_factory=list)
    """Seconds of a call: the median of each turn."""
    calls: int = 0
    """Timed calls in all."""
    peak_bytes: int | None = None
    """Memory that a call takes beside its inputs, its result included: on a GPU what torch allocates, on a CPU
    resident memory, which the allocator gives back when it likes; None: this platform doesn't tell."""
    figures: dict[str, Any] = field(default_factory=dict)
    error: str = ""
    """Why there is no number."""

    @property
    def median_s(self) -> float | None:
        return median(self.turns_s) if self.turns_s and not self.error else None

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "device": self.device,
            "method": self.method,
            "note": self.note,
            "median_s": self.median_s,
            "low_s": min(self.turns_s) if self.median_s else None,
            "high_s": max(self.turns_s) if self.median_s else None,
            "rounds": len(self.turns_s),
            "calls": self.calls,
            "peak_bytes": self.peak_bytes,
            **self.figures,
            "error": self.error,
        }


def device_name(device: torch.device) -> str:
    return "cpu" if device.type == "cpu" else torch.cuda.get_device_name(device)


def need(package: str, install: str = "'fastclr[bench]'") -> None:
    """Raises `NotMeasured`, with the command that installs it, where a package is missing."""
    if importlib.util.find_spec(package) is None:
        raise NotMeasured(f"{package} is not installed: pip install {install}")


def need_cuda(device: torch.device) -> None:
    """Raises `NotMeasured` on a CPU."""
    if device.type != "cuda":
        raise NotMeasured("needs a CUDA device")


def measure(
    variants: Sequence[Variant],
    device: torch.device,
    *,
    rounds: int = 5,
    turn_s: float = 0.1,
    calls: int | None = None,
    together: bool = False,
) -> list[Timing]:
    """Time each variant in turns.  One that fails keeps its reason, and the others go on.

    Args:
        variants: what to compare; all of them are prepared before the first is timed.
        device: what they run on.
        rounds: turns of each variant.
        turn_s: seconds that a turn takes, about; at least three calls.
        calls: calls of a turn, instead of `turn_s`: ranks that wait for each other must agree on them.
        together: time a turn's calls as one, as a loop runs them, and divide: what happens only now and then
            (waiting for data) counts then too.  Otherwise a GPU's L2 cache is emptied of a call's inputs before it.
    """
    timings = [Timing(v.name, device_name(device), _method(v, device), v.note) for v in variants]
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        cleaner = _Cleaner(device) if device.type == "cuda" else None
        functions: list[tuple[Function, int] | None] = []
        for variant, timing in zip(variants, timings, strict=True):
            functions.append(_attempt(timing, partial(_prepare, variant, timing, device, turn_s, calls)))
        for number in range(rounds):
            for offset in range(len(variants)):
                place = (number + offset) % len(variants)
                timing, prepared = timings[place], functions[place]
                if prepared is None or timing.error:
                    continue
                function, count = prepared
                turn = _attempt(timing, partial(_turn, function, count, device, cleaner, together))
                if turn is not None:
                    timing.turns_s.append(turn)
                    timing.calls += count
    return timings


def _method(variant: Variant, device: torch.device) -> str:
    if device.type == "cpu":
        return "perf_counter"
    return "CUDA graph" if variant.graph else "CUDA events"


def _attempt(timing: Timing, action: Callable[[], Any]) -> Any:
    try:
        return action()
    except NotMeasured as reason:
        timing.error = str(reason)
    except torch.OutOfMemoryError:
        timing.error = "out of memory"
        torch.cuda.empty_cache()
    except (ValueError, OSError, EngineUnavailable) as error:  # what was asked for doesn't go together
        timing.error = " ".join(str(error).split())
    except Exception as error:
        traceback.print_exc(file=sys.stderr)
        timing.error = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    return None


def _prepare(
    variant: Variant, timing: Timing, device: torch.device, turn_s: float, calls: int | None
) -> tuple[Function, int]:
    """The function, warm, and how often a turn calls it."""
    if variant.graph:
        need_cuda(device)
    function = variant.make()
    result = function()  # compiles
    if variant.check is not None:
        timing.figures.update(variant.check(result))
    del result
    timing.peak_bytes = _peak_bytes(function, device)
    if variant.graph:
        function = captured(function)
        function()
    once = _turn(function, 1, device, None)
    return function, calls or min(max(int(turn_s / max(once, 1e-9)), 3), MAX_CALLS)


def _turn(
    function: Function, count: int, device: torch.device, cleaner: "_Cleaner | None", together: bool = False
) -> float:
    """Seconds of a call: the median of `count` calls (their mean: `together`), after one that isn't counted."""
    function()
    repeats, inner = (1, count) if together else (count, 1)
    clock = _wall_clock if device.type == "cpu" else _gpu_clock
    return median(clock(function, repeats, inner, None if together else cleaner)) / inner


def _wall_clock(function: Function, repeats: int, inner: int, _: "_Cleaner | None") -> list[float]:
    marks = [time.perf_counter()]
    for _repeat in range(repeats):
        for _call in range(inner):
            function()
        marks.append(time.perf_counter())
    return [after - before for before, after in pairwise(marks)]


def _gpu_clock(function: Function, repeats: int, inner: int, cleaner: "_Cleaner | None") -> list[float]:
    events = []
    torch.cuda.synchronize()
    for _repeat in range(repeats):
        if cleaner is not None:
            cleaner()
        start, end = (torch.cuda.Event(enable_timing=True) for _event in range(2))
        start.record()
        for _call in range(inner):
            function()
        end.record()
        events.append((start, end))
    torch.cuda.synchronize()
    return [start.elapsed_time(end) / 1000 for start, end in events]


class _Cleaner:
    """Fills the L2 cache with what no variant reads."""

    def __init__(self, device: torch.device) -> None:
        self._data = torch.ones(FLUSH_BYTES // 4, device=device)

    def __call__(self) -> None:
        self._data.amax()


def captured(function: Function) -> Function:
    """Replays the function's launches as one CUDA graph; its inputs must stay where they are."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):  # libraries make their workspaces, the allocator its blocks
            function()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    # threads of a loader may allocate meanwhile: what other threads do is none of the capture's business
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
