"""JPEG files below the level of a decoder: restart intervals, windows cut from them, lossless transcoding.

`add_restarts` is imported when it is first used: its compiled code needs numba, whose import takes half a second.
"""

from typing import TYPE_CHECKING

from pipelines.jpeg.interval import Restart, TranscodeError
from pipelines.system.lazy import lazy_names

if TYPE_CHECKING:
    from pipelines.jpeg.restart import add_restarts as add_restarts

__all__ = ["Restart", "TranscodeError", "add_restarts"]
__getattr__, __dir__ = lazy_names(__name__, {"add_restarts": "pipelines.jpeg.restart"})
