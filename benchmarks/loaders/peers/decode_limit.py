"""The decode limit: the same threads doing nothing but decoding each image once, with libjpeg-turbo."""

import threading
from collections.abc import Callable, Generator
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipelines.beton import Files


@dataclass
class DecodeLimit:
    """All images of a file, each into a buffer of the thread's own, as many in one call as the native engine does.

    By the system's libturbojpeg, or where there is none by `simplejpeg.decode_jpeg`, a call for each image.
    """

    name: str
    file: "Files"
    batch_size: int
    num_threads: int
    lacks: str = ""

    def open(self) -> Any:
        from pipelines import BetonReader

        return BetonReader(self.file)

    def epoch(self, loader: Any) -> Generator[int]:
        import numpy as np

        from pipelines.engines.native.engine import rows_per_claim

        areas = loader.heights.astype(np.int64) * loader.widths
        order = np.random.default_rng().permutation(len(loader))
        rows = rows_per_claim(areas.mean())
        claims = iter([(low, min(low + rows, len(order))) for low in range(0, len(order), rows)])
        done: SimpleQueue[int | Exception] = SimpleQueue()  # numbers of images

        def work() -> None:
            try:
                decode = _decoder(loader, 3 * int(areas.max()), rows)
                for low, high in claims:  # a list iterator hands each claim to one thread only
                    decode(order, low, high)
                    done.put(high - low)
            except Exception as error:
                done.put(error)

        threads = [threading.Thread(target=work, daemon=True) for _ in range(self.num_threads)]
        for thread in threads:
            thread.start()
        try:
            decoded = 0
            for _ in range(len(loader) // self.batch_size):
                while decoded < self.batch_size:
                    count = done.get()
                    if isinstance(count, Exception):
                        raise count
                    decoded += count
                decoded -= self.batch_size
                yield self.batch_size
        finally:
            for _ in claims:  # an epoch that is dropped half way ends its threads too
                pass
            for thread in threads:
                thread.join()


def _decoder(reader: Any, largest: int, rows: int) -> Callable[[Any, int, int], None]:
    """Return a function that decodes samples order[low:high] in this thread.  ValueError: one of them is corrupt."""
    import numpy as np
    import simplejpeg

    from pipelines.engines.native.turbojpeg import Decoder, decode_samples

    buffer, starts = np.empty((largest + 32) * rows, np.uint8), np.empty(rows, np.int64)
    columns = reader.offsets, reader.sizes, reader.modes, reader.heights, reader.widths
    try:
        decoder = Decoder()
    except OSError:

        def decode(order: Any, low: int, high: int) -> None:
            for index in order[low:high].tolist():
                try:
                    simplejpeg.decode_jpeg(reader.image_bytes(index), buffer=buffer)
                except ValueError:
                    reader.decode(index, buffer)  # it copies raw pixels, and names a corrupt sample
    else:

        def decode(order: Any, low: int, high: int) -> None:
            count = decode_samples(decoder.address, reader.data, *columns, order, low, high, buffer, starts)
            if count < high - low:
                sample = int(order[low + count])
                reader.decode(sample)  # it knows the reason
                raise ValueError(f"{reader.where(sample)}: libturbojpeg could not decode its JPEG")

    return decode
