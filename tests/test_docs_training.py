"""docs/training.md does what it says: its recipes are read."""

import re
import tomllib
from pathlib import Path

import pytest

from fastclr.config import Config
from fastclr.recipes import from_table
from fastclr.train.build import check_views
from pipelines.views.presets import byol

PAGE = Path(__file__).parents[1] / "docs" / "training.md"


def test_the_views_are_those_of_byol():
    example, _ = re.findall(r"```toml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    config = from_table(tomllib.loads(example))
    assert config == Config(views=byol())
    check_views(config)


def test_the_schedule_is_read():
    _, example = re.findall(r"```toml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    config = from_table(tomllib.loads(example))
    assert [config.views_at(share)[0].size for share in (0.0, 0.5, 0.6)] == [16, 16, 24]
    assert config.views_at(0.5)[0].scale == pytest.approx((0.3, 1.0))
    assert config.loss_at(0.25).temperature == pytest.approx(0.125)
    check_views(config)
