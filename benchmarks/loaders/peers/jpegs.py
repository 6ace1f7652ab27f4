"""The file of a peer whose decoder takes JPEGs only."""

from pipelines import BetonReader
from pipelines.beton import Files
from pipelines.beton.layout import JPEG_MODE


def open_jpegs(file: Files) -> BetonReader:
    """Open the file or set.  ValueError: it holds raw pixels."""
    reader = BetonReader(file)
    if (reader.modes != JPEG_MODE).any():
        raise ValueError(f"{reader.path} holds raw pixels, and this peer reads JPEGs only")
    return reader
