"""Runs a command as a process of its own and returns the CPU time that the system counted for it."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

PR_SET_PDEATHSIG = 1
LAST_LINES = 4
"""Lines of a failed process's output that its error shows."""


@dataclass(frozen=True)
class Spent:
    """Time of a process, from its start to its end."""

    cpu_s: float
    """User and system time of all its threads, and of the processes that it waited for."""
    wall_s: float


class ProcessFailed(ValueError):
    """A process ended with an error, or by a signal."""


class Processes:
    """Processes that run in several threads of this program, and are ended together."""

    def __init__(self) -> None:
        self._running: set[int] = set()

    def run(
        self, module: str, arguments: list[str], output: Path, environment: Mapping[str, str], ranks: int = 1
    ) -> Spent:
        """Run `python -m MODULE ARGUMENTS`, under torchrun if it has several ranks, and return the time that it took.

        The time is that of the system's accounting (`wait4`), which a process can neither leave out nor reset: the
        start of the interpreter and all imports are in it.

        Args:
            module, arguments: what to run.
            output: file for what it prints.
            environment: its environment variables.
            ranks: processes of a run on several GPUs.

        Raises:
            ProcessFailed: it did not succeed; the message has the end of its output.
        """
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
        command = [sys.executable, *(launcher if ranks > 1 else []), "-m", module, *arguments]
        start = time.perf_counter()
        with open(output, "wb") as file:
            process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=dict(environment))
        self._running.add(process.pid)
        _, status, usage = os.wait4(process.pid, 0)
        self._running.discard(process.pid)
        # Popen would wait for it, too
        process.returncode = os.waitstatus_to_exitcode(status)
        spent = Spent(usage.ru_utime + usage.ru_stime, time.perf_counter() - start)
        if process.returncode:
            lines = output.read_text(encoding="utf-8", errors="replace").splitlines()[-LAST_LINES:]
            raise ProcessFailed(f"{output}: exit code {process.returncode}: {' | '.join(lines)}")
        return spent

    def end(self) -> None:
        """Ask all running processes to end; `run` then returns in their threads."""
        for pid in list(self._running):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)


def end_with_parent() -> None:
    """Let this process get SIGTERM when the one that started it ends, however that happens; on Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
