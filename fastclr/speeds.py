"""How fast this machine decodes JPEGs and reads a file, measured in a second or two."""

import os
import threading
import time
from pathlib import Path

import numpy as np
import simplejpeg

DECODE_SECONDS = 0.5
"""Time of each decoding test."""
DISK_BYTES = 1 << 28
"""Most that the reading test reads."""
BLOCK_BYTES = 1 << 17
"""Of a random read: about one JPEG of ImageNet."""


def drawn_jpeg() -> bytes:
    """A JPEG in FFCV's convention, 500 × 375, quality 90, 4:2:0: waves of color with some noise."""
    y, x = np.mgrid[0:375, 0:500] / 500
    rng = np.random.default_rng(0)
    waves = [np.sin(20 * (channel + 1) * x + 35 * y + channel) for channel in range(3)]
    pixels = 127 + 100 * np.stack(waves, -1) + rng.normal(0, 8, (375, 500, 3))
    return simplejpeg.encode_jpeg(pixels.clip(0, 255).astype(np.uint8), 90, colorsubsampling="420")


def decode_rate(jpegs: list[bytes], threads: int, seconds: float = DECODE_SECONDS) -> float:
    """Images per second that this many threads decode together, over about `seconds`."""
    counts, start = [0] * threads, time.perf_counter()

    def work(number: int) -> None:
        while time.perf_counter() - start < seconds:
            simplejpeg.decode_jpeg(jpegs[counts[number] % len(jpegs)])
            counts[number] += 1

    workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return sum(counts) / (time.perf_counter() - start)


def disk_speed(file: Path) -> str:
    """In words: MB/s in sequence, and random reads of 128 KiB, after asking the system to forget the file.

    It may not obey (a file system in memory can't), so a figure of many GB/s is that of the page cache.
    """
    size = min(file.stat().st_size, DISK_BYTES)
    blocks = max(size // BLOCK_BYTES, 1)
    rng = np.random.default_rng()
    orders = {
        "in sequence": np.arange(blocks),
        "at random": rng.permutation(blocks)[:512],
    }
    words = []
    with file.open("rb", buffering=0) as stream:
        for name, order in orders.items():
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(stream.fileno(), 0, size, os.POSIX_FADV_DONTNEED)
            start, read = time.perf_counter(), 0
            for block in order.tolist():
                stream.seek(block * BLOCK_BYTES)
                read += len(stream.read(BLOCK_BYTES))
            words.append(f"{read / (time.perf_counter() - start) / 1e6:,.0f} MB/s {name}")
    return ", ".join(words)
