"""StopRequest: turns signals that end a run into a flag that the loop checks between two steps."""

import signal
import threading
from types import FrameType


class StopRequest:
    """While its `with` block runs, the first of these signals only sets `signal`:

        SIGINT     Ctrl-C
        SIGTERM    from a cluster, a container, torchrun
        SIGHUP     the terminal or the SSH session is gone; ignored if it was before, as under nohup
        SIGUSR1    from Slurm, before the time is up (`--signal=USR1@120`)

    A second Ctrl-C acts as usual, for users who do not want to wait.  Further signals of the other kinds are ignored: a
    cluster sends SIGTERM to torchrun and to the ranks, and torchrun sends it to the ranks once more.
    Outside the main thread, where Python allows no handlers, the flag is never set.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    def __enter__(self) -> "StopRequest":
        self._before = {}
        if threading.current_thread() is threading.main_thread():
            ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            numbers = [n for n in self.SIGNALS if n != signal.SIGHUP or not ignored]
            self._before = {number: signal.signal(number, self._receive) for number in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.signal is None:
            self.signal = signal.Signals(number)
            signal.signal(signal.SIGINT, self._before[signal.SIGINT])
