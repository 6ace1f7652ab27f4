"""A ladder of one rung that takes seconds: the tiny run's drawn images, with a budget of two CPU minutes."""

import json
from dataclasses import replace
from pathlib import Path

from support.tiny_run import TINY_RECIPE, write_tiny_file, write_tiny_recipe

from fastclr.config import flatten
from fastclr.recipes import from_table, to_toml
from fastclr.speedrun.publish import publish, write_record
from fastclr.speedrun.record import SeedLog
from fastclr.speedrun.rungs import Rung, load_rungs

SMOKE_RUNG = """
[[rung]]
id = "smoke"
title = "best kNN in two CPU-minutes"
metric = "knn"
seeds = 2
budget_cpu_s = 120
classes = ["cpu-avx512-bf16", "cpu-avx2"]
data = "drawn patterns"
train_samples = 79
test_samples = 40
num_classes = 5
max_parameters = 5_000_000
recipe = "tiny.toml"
reference = "20 % by chance"
source = "five classes"
conversion_cpu_s = 0.5

[[rung]]
id = "smoke-50"
title = "CPU-minutes to 50 %"
metric = "knn"
seeds = 2
target = 0.5
sigma = 0.01
classes = ["cpu-avx512-bf16", "cpu-avx2"]
data = "drawn patterns"
train_samples = 79
test_samples = 40
num_classes = 5
recipe = "tiny.toml"
reference = "none"
source = "none"
conversion_cpu_s = 0.5
"""


def write_smoke_ladder(root: Path) -> Rung:
    """Write rungs.toml, a page with markers, the tiny files and the tiny recipe into a folder; return the rung."""
    (root / "rungs.toml").write_text(SMOKE_RUNG)
    markers = "".join(f"<!-- {name} -->\n<!-- /{name} -->\n" for name in ("smoke", "smoke-50"))
    (root / "README.md").write_text(f"# Ladder\n\n{markers}")
    write_tiny_file(root / "train.beton")
    write_tiny_file(root / "test.beton", 40, seed=1)
    write_tiny_recipe(root / "tiny.toml")
    return load_rungs(root / "rungs.toml")["smoke"]


def smoke_log(seed: int, accuracy: float, rung: str = "smoke", cpu_s: float = 60.0) -> SeedLog:
    """Return the log of a seed that keeps every rule."""
    import tomllib

    config = from_table(tomllib.loads(TINY_RECIPE))
    model = replace(config.model, stem="cifar", proj_hidden_dim=64)
    data = replace(config.data, engine="resident", threads=1)
    train = replace(config.train, precision="float32", seed=0)
    config = replace(config, model=model, data=data, train=train)
    start = {
        "rung": rung,
        "name": "baseline",
        "division": "simclr",
        "machine_class": "cpu-avx2",
        "command": "fastclr speedrun smoke",
        "commit": "a" * 40,
        "changed": False,
        "code": "c0de",
        "processor": "a processor",
        "machine": {"lscpu": "…"},
        "versions": {"torch": "2.9"},
        "train": {"fingerprint": "f1", "samples": 79, "side": 16},
        "test": {"fingerprint": "f2", "samples": 40, "side": 16},
        "conversion_cpu_s": 0.5,
        "conversion": "measured once",
        "seed": seed,
        "recipe": to_toml(config),
        "settings": json.loads(json.dumps(flatten(config))),
    }
    trained = {
        "seed": seed,
        "steps": 20,
        "labels_seen": 0,
        "parameters": 80_000,
        "training_s": 50.0,
        "warm_up_s": 0.0,
        "clock_s": cpu_s + 0.5,
        "cpu_s": cpu_s,
        "wall_s": 70.0,
    }
    evaluated = {
        "seed": seed,
        "size": 16,
        "views_per_image": 1,
        "k": 79,
        "temperature": 0.1,
        "knn": accuracy,
        "knn10": accuracy - 0.01,
        "linear": None,
        "train_samples": 79,
        "test_samples": 40,
        "num_classes": 5,
        "encoder_before": "e",
        "encoder_after": "e",
    }
    steps = [{"step": step, "epoch": step // 4, "lr": 0.1, "loss": 3.0} for step in range(1, 21)]
    return SeedLog(start, steps, trained, evaluated)


def write_smoke_record(root: Path, accuracies: list[float], name: str = "baseline", **kwargs: object) -> Path:
    """Write a record of the rung from such logs, and publish it; return its folder."""
    rung_id = str(kwargs.get("rung", "smoke"))
    logs = [smoke_log(seed, accuracy, **kwargs) for seed, accuracy in enumerate(accuracies)]
    for log in logs:
        log.start["name"] = name
    rung = load_rungs(root / "rungs.toml")[rung_id]
    write_record(root / "new", root, rung, logs, about=f"the {name}", configurations_tried=3)
    return publish(root / "new", root, rung)
