"""JPEG files below the level of a decoder: restart intervals, windows cut from them, lossless transcoding."""

from pipelines.jpeg.restart import Restart, TranscodeError, add_restarts

__all__ = ["Restart", "TranscodeError", "add_restarts"]
