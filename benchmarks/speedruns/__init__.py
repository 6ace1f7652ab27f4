"""The ladder of speedruns: its rungs, rules and records; the code is in `fastclr.speedrun`."""

from pathlib import Path

FOLDER = Path(__file__).parent
"""Folder of rungs.toml, README.md and a folder per rung."""
