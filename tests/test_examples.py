"""The examples in docstrings do what they show."""

import doctest
import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = [path for package in ("fastclr", "pipelines") for path in sorted((ROOT / package).rglob("*.py"))]
RUNS = re.compile(r"^ *>>> (?!.*doctest: \+SKIP)", re.MULTILINE)
MODULES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in FILES
    if RUNS.search(path.read_text("utf-8"))
]
"""Those with an example to run; none of them needs an optional package."""


def test_the_modules_are_found():
    assert {"fastclr.recipes", "fastclr.model.simclr", "pipelines.views.philox"} <= set(MODULES)


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    found = doctest.testmod(importlib.import_module(name))
    assert found.attempted > 0
    assert found.failed == 0
