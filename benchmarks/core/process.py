"""Call a function in a process of its own, which is ended, with its children, when it takes too long."""

import multiprocessing
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, TypeVar

import psutil

from pipelines.errors import EngineUnavailable

Value = TypeVar("Value")


class Failed(RuntimeError):
    """The function raised an error, died or took too long; the message says which."""


def call(function: Callable[..., Value], *arguments: Any, timeout_s: float) -> Value:
    """`function(*arguments)`, both picklable, in a new interpreter.

    Raises:
        Failed: with the function's own error as its message, or that it died or took longer than `timeout_s`.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(
        target=_run, args=(theirs, multiprocessing.get_start_method(), function, arguments)
    )
    process.start()
    theirs.close()
    try:
        if not ours.poll(timeout_s):
            raise Failed(f"did not end within {timeout_s:g} seconds")
        value, error = ours.recv()
    except EOFError:
        raise Failed("its process died") from None
    finally:
        ours.close()
        _end(process)
    if error:
        raise Failed(error)
    return value


def _run(
    pipe: Connection, start_method: str, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    multiprocessing.set_start_method(start_method, force=True)  # the function's own workers start as usual
    try:
        pipe.send((function(*arguments), ""))
    except EngineUnavailable as error:
        pipe.send((None, str(error)))
    except Exception as error:
        traceback.print_exc()
        pipe.send((None, f"{type(error).__name__}: {error}"))


def _end(process: Any) -> None:
    process.join(5)
    if process.is_alive():
        for child in psutil.Process(process.pid).children(recursive=True):
            child.kill()
        process.kill()
        process.join()
