"""Encoders of other projects, coming in (sources.py) and going out to their libraries (formats.py)."""

from fastclr.export.sources import open_encoder

__all__ = ["open_encoder"]
