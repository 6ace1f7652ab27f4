"""The decode limit: the same threads doing nothing but decoding each image once."""

import threading
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any


@dataclass
class DecodeLimit:
    """`simplejpeg.decode_jpeg` into a buffer of the thread's own, over all images of a file."""

    name: str
    file: Path
    batch_size: int
    num_threads: int
    lacks: str = ""

    def open(self) -> Any:
        from pipelines import BetonReader

        return BetonReader(self.file)

    def epoch(self, loader: Any) -> Generator[int]:
        import numpy as np
        import simplejpeg

        pixels = 3 * int((loader.heights.astype(np.int64) * loader.widths).max())
        ticks: SimpleQueue[None] = SimpleQueue()  # one for every decoded image
        samples = iter(np.random.default_rng().permutation(len(loader)).tolist())

        def work() -> None:
            buffer = np.empty(pixels, np.uint8)
            for index in samples:  # a list iterator hands each sample to one thread only
                simplejpeg.decode_jpeg(loader.image_bytes(index), buffer=buffer)
                ticks.put(None)

        threads = [threading.Thread(target=work, daemon=True) for _ in range(self.num_threads)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(len(loader) // self.batch_size):
                for _ in range(self.batch_size):
                    ticks.get()
                yield self.batch_size
        finally:
            for _ in samples:  # an epoch that is dropped half way ends its threads too
                pass
            for thread in threads:
                thread.join()
