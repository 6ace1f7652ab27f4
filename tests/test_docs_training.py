"""docs/training.md does what it says: its recipes are read."""

import re
import tomllib
from pathlib import Path

from fastclr.config import Config
from fastclr.recipes import from_table
from fastclr.train.build import check_views
from pipelines.views.presets import byol

PAGE = Path(__file__).parents[1] / "docs" / "training.md"


def test_the_views_are_those_of_byol():
    (example,) = re.findall(r"```toml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    config = from_table(tomllib.loads(example))
    assert config == Config(views=byol())
    check_views(config)
