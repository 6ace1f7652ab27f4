"""Encoders of other projects, coming in (sources.py) and going out to their libraries (formats.py)."""

from fastclr.export.formats import FORMATS, export
from fastclr.export.sources import open_encoder

__all__ = ["FORMATS", "export", "open_encoder"]
