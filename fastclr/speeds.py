"""Measures in a second or two how fast this machine decodes JPEGs and reads a file."""

import os
import threading
import time
from pathlib import Path

import numpy as np
import simplejpeg

DECODE_SECONDS = 0.5
"""Duration of each decoding test."""
DISK_BYTES = 1 << 28
"""Maximum that the reading test reads, bytes."""
BLOCK_BYTES = 1 << 17
"""Size of a random read, bytes: about one JPEG of ImageNet."""


def drawn_jpeg() -> bytes:
    """Return a JPEG in FFCV's convention, 500 × 375, quality 90, 4:2:0: waves of color with some noise."""
    y, x = np.mgrid[0:375, 0:500] / 500
    rng = np.random.default_rng(0)
    waves = [np.sin(20 * (channel + 1) * x + 35 * y + channel) for channel in range(3)]
    pixels = 127 + 100 * np.stack(waves, -1) + rng.normal(0, 8, (375, 500, 3))
    return simplejpeg.encode_jpeg(pixels.clip(0, 255).astype(np.uint8), 90, colorsubsampling="420")


def decode_rate(jpegs: list[bytes], threads: int, seconds: float = DECODE_SECONDS) -> float:
    """Return how many images per second `threads` threads decode together, measured for about `seconds`."""
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
    """Return a sentence with the MB/s of sequential reads and of random reads of 128 KiB.

    The system is asked to drop the file from the page cache first.  It may not do so (a file system in memory
    can't), so a figure of many GB/s is the page cache's.
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
