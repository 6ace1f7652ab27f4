"""Whether windows can be cut from the JPEGs of a file."""

import numpy as np

from pipelines.beton import BetonReader
from pipelines.jpeg.window import has_restarts

PROBED_SAMPLES = 64


def finds_restarts(reader: BetonReader) -> bool:
    """Return whether one of up to PROBED_SAMPLES samples is a JPEG with restart markers.

    The samples lie at equal distances.  A file without markers need not be searched for them in every epoch.
    """
    samples = np.linspace(0, len(reader) - 1, min(len(reader), PROBED_SAMPLES)).astype(int)
    return any(
        reader.is_jpeg(index) and has_restarts(reader.image_bytes(index)) for index in samples.tolist()
    )
