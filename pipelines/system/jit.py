"""numba's compiler for the kernels: chooses the folder of its cache, and announces a compilation.

numba caches compiled functions beside the source file, or else in the user's cache folder.  If neither is writable
(containers, clusters), it refuses to compile.  Then the functions are cached in a private folder under the temporary
directory, or compiled again by every process.
"""

import importlib
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import Any

from pipelines.errors import EngineUnavailable
from pipelines.system.private_folder import private_folder

_announce: list[Callable[[str], None]] = []
_cached: set[Callable[..., Any]] = set()
"""The Python functions that are to be compiled once per machine."""


def njit(*, cache: bool = False, **options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Return a decorator that compiles a function: `numba.njit` with a cache that needs no writable home folder.

    Args:
        cache: keep the machine code on disk for later processes.
        options: further options of `numba.njit`.

    Raises:
        EngineUnavailable: numba's compiler is disabled.
    """
    numba = _numba()

    def compiled(function: Callable[..., Any]) -> Any:
        if not cache:
            return numba.njit(**options)(function)
        _cached.add(function)
        try:
            return numba.njit(cache=True, **options)(function)
        except RuntimeError:  # neither the package's folder nor the user's cache folder can be written
            return _kept_in_private(function, options)

    return compiled


def cache_folder(compiled: Any) -> str | None:
    """Return the folder that a compiled function is cached in; None: every process compiles it."""
    return compiled.stats.cache_path


def announce_compiling(announce: Callable[[str], None]) -> None:
    """Call `announce` with one sentence when this process first compiles a cached function.

    Nothing is announced if all functions are loaded from the cache.
    """
    _announce[:] = [announce]


def _kept_in_private(function: Callable[..., Any], options: dict[str, Any]) -> Any:
    numba = _numba()
    folder = private_folder("numba")
    if folder is not None:
        # numba reads the setting when it decorates; functions of other packages keep the user's setting
        before, numba.config.CACHE_DIR = numba.config.CACHE_DIR, str(folder)
        try:
            # RuntimeError: the private folder can't be written after all, for example on a full disk
            with suppress(RuntimeError):
                return numba.njit(cache=True, **options)(function)
        finally:
            numba.config.CACHE_DIR = before
    return numba.njit(**options)(function)


@cache
def _numba() -> Any:
    """Import numba, which takes a second, when the first function is decorated."""
    numba = importlib.import_module("numba")
    if numba.config.DISABLE_JIT:
        raise EngineUnavailable(
            "numba's compiler is disabled (NUMBA_DISABLE_JIT=1 in the environment, or disable_jit in a file "
            ".numba_config.yaml), and the kernels can't run without it: unset NUMBA_DISABLE_JIT"
        )
    event = importlib.import_module("numba.core.event")

    class Announcer(event.Listener):  # type: ignore[misc, name-defined]
        def on_start(self, event: Any) -> None:
            dispatcher = event.data["dispatcher"]
            if _announce and dispatcher.py_func in _cached:
                _announce.pop()(_announcement(cache_folder(dispatcher)))

        def on_end(self, event: Any) -> None:
            pass

    event.register("numba:compile", Announcer())
    return numba


def _announcement(folder: str | None) -> str:
    if folder is None:
        return (
            "compiling for this machine, up to a minute, in every run: there is no folder to keep it in; "
            "set NUMBA_CACHE_DIR to one that you can write"
        )
    return f"compiling for this machine, once, up to a minute; kept in {folder}"
