"""Runs work in another process: a service that answers requests one by one, or a single call.

The process gives the work separate memory, threads, library settings and GIL; if it fails, dies or hangs, the result is
one error message.
"""

import multiprocessing
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, nullcontext, suppress
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, TypeVar

import psutil

from pipelines.errors import EngineUnavailable

EXIT_GRACE_S = 10
"""Time limit for a process to exit by itself; then it is killed with its children."""

Value = TypeVar("Value")
Service = Callable[..., AbstractContextManager[Callable[[Any], Any]]]
"""Returns a context manager that yields a function, request → answer."""


class WorkFailed(RuntimeError):
    """The work raised an error, died or took too long; the message says which, in one line."""


class Worker:
    """A new interpreter that runs a service until it is closed.

    Args:
        service: picklable, as are its arguments, the requests and the answers.
        arguments: arguments of the service, which is opened in the other process.
        name: name of the process.
    """

    def __init__(self, service: Service, *arguments: Any, name: str | None = None) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, child_pipe = context.Pipe()
        start_method = multiprocessing.get_start_method()
        self.process = context.Process(
            target=_serve, args=(child_pipe, start_method, service, arguments), name=name
        )
        self.process.start()
        child_pipe.close()

    def ask(self, request: Any, timeout_s: float) -> Any:
        """Return the answer to a request.

        Raises:
            WorkFailed: the service could not be opened or raised an error, or its process died or exceeded the time
                limit (then it is killed).
        """
        try:
            self._pipe.send(request)
            if not self._pipe.poll(timeout_s):
                self._kill()
                raise WorkFailed(f"no answer in {timeout_s:g} seconds")
            answer, failure = self._pipe.recv()
        except (EOFError, OSError) as error:
            raise WorkFailed(f"its process died ({type(error).__name__})") from None
        if failure:
            raise WorkFailed(failure)
        return answer

    def close(self) -> None:
        """End the service and its process."""
        self._pipe.close()
        self.process.join(EXIT_GRACE_S)
        if self.process.is_alive():
            self._kill()

    def _kill(self) -> None:
        with suppress(psutil.NoSuchProcess):
            for child in psutil.Process(self.process.pid).children(recursive=True):
                child.kill()
        self.process.kill()
        self.process.join()


def call_in_process(function: Callable[..., Value], *arguments: Any, timeout_s: float) -> Value:
    """Return `function(*arguments)`, both picklable, computed in a new interpreter.

    Raises:
        WorkFailed: see `Worker.ask`.
    """
    with closing(Worker(_single_call, function, arguments)) as worker:
        return worker.ask(None, timeout_s)


def error_line(error: Exception) -> str:
    """Return an error as one line: the last one, if it contains another process's traceback (as with a DataLoader)."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if len(lines) > 1:
        return lines[-1]
    text = "".join(lines)
    return text if isinstance(error, EngineUnavailable) else f"{type(error).__name__}: {text}"


def _single_call(
    function: Callable[..., Value], arguments: tuple[Any, ...]
) -> AbstractContextManager[Callable[[Any], Value]]:
    return nullcontext(lambda _: function(*arguments))


def _serve(pipe: Connection, start_method: str, service: Service, arguments: tuple[Any, ...]) -> None:
    """Answer every request with (answer, "") or (None, error) until the other end of the pipe is closed."""
    # workers that the service starts use the start method of a user's script, not that of this process
    multiprocessing.set_start_method(start_method, force=True)
    requests = _requests(pipe)
    try:
        with service(*arguments) as function:
            for request in requests:
                pipe.send(_attempt(partial(function, request)))
    except (BrokenPipeError, ConnectionError):
        return
    except Exception as error:
        failed = _failed(error)
        with suppress(ConnectionError):
            for _ in requests:
                pipe.send(failed)


def _requests(pipe: Connection) -> Iterator[Any]:
    while True:
        try:
            yield pipe.recv()
        except (EOFError, ConnectionError):
            return


def _attempt(function: Callable[[], Any]) -> tuple[Any, str]:
    try:
        return function(), ""
    except Exception as error:
        return _failed(error)


def _failed(error: Exception) -> tuple[None, str]:
    # the message of an error that a user can cause says enough; for any other, the place in the code is needed
    if not isinstance(error, ValueError | OSError | EngineUnavailable):
        traceback.print_exception(error)
    return None, error_line(error)
