"""Work in another process: answers, errors, deaths and hangs."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import psutil
import pytest

from benchmarks.core.process import Worker, WorkFailed, call_in_process, error_line
from pipelines.errors import EngineUnavailable


@contextmanager
def adder(start: int, closed: Path) -> Iterator[Callable[[int], int]]:
    total = start

    def add(number: int) -> int:
        nonlocal total
        total += number
        if number < 0:
            raise ValueError(f"{number} is negative")
        return total

    try:
        yield add
    finally:
        closed.touch()


@contextmanager
def refuses() -> Iterator[Callable[[int], int]]:
    raise OSError("no such adder")
    yield int


def test_a_service_keeps_its_state_and_is_closed(tmp_path):
    closed = tmp_path / "closed"
    with closing(Worker(adder, 10, closed)) as worker:
        assert [worker.ask(number, 60) for number in (1, 2)] == [11, 13]
        with pytest.raises(WorkFailed, match="ValueError: -5 is negative"):
            worker.ask(-5, 60)
        assert worker.ask(1, 60) == 9
        assert not closed.exists()
    assert closed.exists()
    assert not worker.process.is_alive()


def test_a_service_that_cannot_be_opened_says_why_every_time():
    with closing(Worker(refuses)) as worker:
        for _ in range(2):
            with pytest.raises(WorkFailed, match="OSError: no such adder"):
                worker.ask(1, 60)


def test_a_call():
    assert call_in_process(divmod, 17, 5, timeout_s=60) == (3, 2)
    with pytest.raises(WorkFailed, match="ZeroDivisionError"):
        call_in_process(divmod, 1, 0, timeout_s=60)


def test_a_call_that_dies():
    with pytest.raises(WorkFailed, match="its process died"):
        call_in_process(os._exit, 3, timeout_s=60)


def leave_a_child(marker: Path) -> None:
    child = psutil.Popen(["sleep", "1000"])
    marker.write_text(str(child.pid))
    time.sleep(1000)


def test_a_call_that_hangs_is_killed_with_its_children(tmp_path):
    marker = tmp_path / "pid"
    with pytest.raises(WorkFailed, match="no answer in 8 seconds"):
        call_in_process(leave_a_child, marker, timeout_s=8)
    pid = int(marker.read_text())
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (EngineUnavailable("needs x: pip install x"), "needs x: pip install x"),
        (ValueError("x is 3"), "ValueError: x is 3"),
        (RuntimeError("Traceback …\n  File …\nOSError: truncated\n"), "OSError: truncated"),
        (StopIteration(), "StopIteration: "),
    ],
)
def test_an_error_is_one_line(error, line):
    assert error_line(error) == line
