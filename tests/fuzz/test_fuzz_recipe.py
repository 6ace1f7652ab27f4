"""Mutated recipes: refused in one line that names the file, or read as a config that survives the way through TOML.

2,000 cases: `PYTHONPATH=tests python tests/fuzz/test_fuzz_recipe.py`.
"""

import re
import tomllib
from collections import Counter
from pathlib import Path

from fuzz.harness import Original, fuzz, main

from fastclr.config import Config
from fastclr.recipes import RECIPES_DIR, from_table, load_recipe, recipe_names, to_toml
from fastclr.schedule import Scheduled
from pipelines.views import ViewSpec
from pipelines.views.presets import byol


def originals() -> list[Original]:
    """The package's recipes, a config.toml and one of two views; most mutations hit values and section names."""
    texts = [(RECIPES_DIR / f"{name}.toml").read_text("utf-8") for name in recipe_names()]
    texts.append(to_toml(load_recipe("cifar10-rn18")))
    texts.append(to_toml(Config(views=byol(32))))
    schedule = (
        Scheduled("views.size", (0.0, 0.5), (16, 32), "linear", multiple_of=8),
        Scheduled("views.scale", (0.0, 0.5), ((0.5, 1.0), (0.2, 1.0))),
    )
    texts.append(to_toml(Config(views=ViewSpec.simclr(32), schedule=schedule)))
    found = []
    for text in texts:
        places = re.finditer(rb"(?m)(?<== ).+$|^\[+\w+\]+$", text.encode())
        found.append(Original(text.encode(), [(match.start(), len(match[0])) for match in places]))
    return found


def attempt(file: Path) -> None:
    config = load_recipe(str(file))
    assert from_table(tomllib.loads(to_toml(config))) == config


def run(folder: Path, count: int, seed: int) -> Counter[str]:
    return fuzz(originals(), attempt, folder / "mutated.toml", count, seed)


def test_mutated_recipes(tmp_path):
    outcomes = run(tmp_path, 200, 0)
    assert outcomes["refused"] > 60
    assert outcomes["accepted"] > 10


if __name__ == "__main__":
    main("recipe", run)
