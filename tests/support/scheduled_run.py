"""A training run of a second whose views and temperature follow a schedule."""

import dataclasses
from pathlib import Path

from support.tiny_run import TINY_RECIPE

from fastclr.config import Config

SCHEDULE = """
[schedule]
views.size = { at = [0.0, 0.3, 0.6], values = [8, 12, 16] }
views.jitter_strength = { at = [0.0, 1.0], values = [0.0, 1.0], kind = "linear" }
loss.temperature = { at = [0.0, 1.0], values = [0.1, 0.3], kind = "linear" }
"""


def write_scheduled_recipe(path: Path, text: str = TINY_RECIPE + SCHEDULE) -> Path:
    path.write_text(text)
    return path


def changed(config: Config, section: str, **values) -> Config:
    return dataclasses.replace(config, **{section: dataclasses.replace(getattr(config, section), **values)})
