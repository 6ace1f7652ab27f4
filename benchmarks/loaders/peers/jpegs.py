"""The file of a peer whose decoder takes JPEGs only."""

from pathlib import Path

from pipelines import BetonReader
from pipelines.beton.layout import JPEG_MODE


def open_jpegs(file: Path) -> BetonReader:
    """Open the file.  ValueError: it holds raw pixels."""
    reader = BetonReader(file)
    if (reader.modes != JPEG_MODE).any():
        raise ValueError(f"{file} holds raw pixels, and this peer reads JPEGs only")
    return reader
