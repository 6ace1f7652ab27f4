"""Decodes a whole set into one array."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from pipelines.beton import BetonReader

IMAGES_PER_TASK = 256
"""Number of images that a thread decodes before it checks for Ctrl-C: few enough to end soon."""


def decoded_bounds(reader: BetonReader) -> np.ndarray:
    """Return the byte at which each decoded image begins in an array of all images, and its end: int64 [N + 1]."""
    return np.cumsum(np.append(0, 3 * reader.heights.astype(np.int64) * reader.widths))


def decode_set(
    reader: BetonReader, samples: np.ndarray, pixels: np.ndarray, bounds: np.ndarray, num_threads: int
) -> dict[int, str]:
    """Decode samples into `pixels`, each at its bounds; return the corrupt ones with the reasons."""
    corrupt = {}

    def decode(some: np.ndarray) -> None:
        for index in some.tolist():
            try:
                reader.decode(index, pixels[bounds[index] : bounds[index + 1]])
            except ValueError as error:
                corrupt[index] = str(error)

    with ThreadPoolExecutor(num_threads) as threads:
        list(threads.map(decode, np.array_split(samples, -(-len(samples) // IMAGES_PER_TASK))))
    return corrupt
