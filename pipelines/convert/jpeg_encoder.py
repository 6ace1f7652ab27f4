"""JPEG files from pixels, in FFCV's format: 4:2:0, with restart markers.

Pillow encodes, because it has libjpeg-turbo write restart markers as it goes.  Markers that are added afterwards
(`pipelines.jpeg.add_restarts`) take twice as long as encoding.
"""

import os
import tempfile
import threading
from typing import BinaryIO, cast

import numpy as np
from PIL import Image

from pipelines.jpeg import Restart
from pipelines.jpeg.interval import restart_interval

MCU = 16
"""Height and width of an MCU of 4:2:0 chroma, in pixels."""
AUTO_MCUS = 1
"""MCUs of an interval for "auto": what loads fastest, see benchmarks/NOTES.md."""

_local = threading.local()


def encode_jpeg(pixels: np.ndarray, quality: int, restart: Restart) -> bytes:
    """Return pixels as a baseline JPEG of 4:2:0 chroma.

    Args:
        pixels: uint8 [h, w, 3], RGB, C-contiguous.
        quality: 1 to 100.
        restart: MCUs per restart interval, see `Restart`; "auto" is 1.

    Raises:
        OSError: there is no space for a temporary file.
    """
    interval = restart_interval(AUTO_MCUS if restart == "auto" else restart, -(-pixels.shape[1] // MCU), MCU)
    file = _thread_file()
    file.seek(0)
    Image.fromarray(pixels).save(
        file, "JPEG", quality=quality, subsampling="4:2:0", restart_marker_blocks=interval
    )
    return os.pread(file.fileno(), file.tell(), 0)


def _thread_file() -> BinaryIO:
    """Return this thread's file, in memory where the system has such files.

    Pillow lets the GIL go while it encodes only if it writes to a file of the system.
    """
    # a forked process shares the position in a file of its parent
    if getattr(_local, "process", None) != os.getpid():
        _local.file = _open_file()
        _local.process = os.getpid()
    return cast(BinaryIO, _local.file)


def _open_file() -> BinaryIO:
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("jpeg"), "w+b", buffering=0)
    return cast(BinaryIO, tempfile.TemporaryFile(buffering=0))
