"""Sources of images for tests of the conversion, and what they hold."""

import os
from contextlib import suppress
from pathlib import Path

import numpy as np
import simplejpeg

from pipelines.convert.protocol import Source


def content(source: Source) -> list[tuple[str, int]]:
    """Names and labels, of members whose content is their name; read backwards, since access is to be random."""
    count = len(source.labels)
    for index in reversed(range(count)):
        assert source.item(index).endswith(source.read(index).decode())
    return [(source.item(index), int(source.labels[index])) for index in range(count)]


def read_all(source: Source, *expected: type[Exception]) -> None:
    """Read all images of a source; one that raises an expected error is left out, as a conversion leaves it out."""
    for index in range(len(source.labels)):
        assert source.item(index).encode()
        with suppress(*expected):
            source.read(index)
    assert all(remark.isprintable() for remark in source.remarks)


def linked_jpegs(folder: Path, count: int, side: int) -> Path:
    """Fill a folder with `count` links to a JPEG of noise, side × side pixels, which takes long to encode anew."""
    noise = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    (folder / "0000.jpg").write_bytes(simplejpeg.encode_jpeg(noise))
    for k in range(1, count):
        os.link(folder / "0000.jpg", folder / f"{k:04}.jpg")
    return folder
