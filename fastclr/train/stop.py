"""StopRequest: Ctrl-C and SIGTERM become a flag that the loop looks at between two steps."""

import signal
import threading
from types import FrameType


class StopRequest:
    """While its `with` block runs, the first SIGINT or SIGTERM only sets `signal`.

    After it Ctrl-C acts as it would without this class, for the user who does not want to wait.  SIGTERM does not:
    a cluster sends it to torchrun and to the ranks alike, and torchrun sends it to the ranks once more.  Outside
    the main thread, where Python allows no handlers, the flag is never set.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    def __enter__(self) -> "StopRequest":
        self._before = {}
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._receive) for number in self.SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.signal is None:
            self.signal = signal.Signals(number)
            signal.signal(signal.SIGINT, self._before[signal.SIGINT])
