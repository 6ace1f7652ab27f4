"""Makes a copy of a file that every peer can read: without restart markers, with fields named "image" and "label"."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from pipelines import BetonReader
from pipelines.beton import BetonWriter, Files
from pipelines.beton.layout import JPEG_MODE
from pipelines.jpeg import TranscodeError, add_restarts
from pipelines.jpeg.probe import finds_restarts

MAX_IMAGES = 4000
"""Images of the copy: enough for any cache to be too small, few enough for a temporary folder."""
USUAL_NAMES = {"image": "image", "label": "label"}


@contextmanager
def without_markers(file: Files, fields: Iterable[str | None] = ()) -> Iterator[Files]:
    """Yield the file or set itself, or a temporary copy if its JPEGs have restart markers or its fields other names.

    Markers slow down a decoder of whole images, and peers are keyed by the usual names.  The copy has the same
    coefficients, without loss, of up to `MAX_IMAGES` images.

    Args:
        fields: names of the image and the label field, as BetonReader takes them.
    """
    with BetonReader(file, *fields) as reader:
        names = {field.read_as: field.name for field in reader.fields if field.read_as}
        if not finds_restarts(reader) and names == USUAL_NAMES:
            yield file
            return
        with TemporaryDirectory(prefix="fastclr-bench-") as folder:
            copy = Path(folder) / "images.beton"
            count = min(len(reader), MAX_IMAGES)
            # spread over the file, which may be sorted by class
            indices = np.linspace(0, len(reader) - 1, count).round().astype(int).tolist()
            max_side = int(max(reader.heights.max(), reader.widths.max()))
            with BetonWriter(copy, count, max_side) as writer:
                for index in indices:
                    if reader.modes[index] == JPEG_MODE:
                        writer.add_jpeg(
                            _stripped(reader.image_bytes(index).tobytes()), int(reader.labels[index])
                        )
                    else:
                        writer.add_raw(reader[index][0], int(reader.labels[index]))
                writer.finish()
            yield copy


def _stripped(jpeg: bytes) -> bytes:
    try:
        return add_restarts(jpeg, "none")
    except TranscodeError:  # progressive, say: then it has no markers that a window could be cut along
        return jpeg
