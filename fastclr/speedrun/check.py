"""The rules of a record, checked on its files alone: `check_record(folder)`.

Every number of record.json is computed anew from the logs.  A rule that is broken is a sentence that says what was
found and what the rule asks for.
"""

import json
import math
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fastclr.config import Config, flatten
from fastclr.optim import num_steps
from fastclr.recipes import from_table
from fastclr.speedrun.evaluation import TEMPERATURE, K
from fastclr.speedrun.record import (
    DIFF,
    DIVISIONS,
    LOGS,
    PREVIOUS,
    README,
    RECIPE,
    RECORD,
    SHARED,
    Record,
    SeedLog,
    earlier,
    read_logs,
    records_of,
    summarize,
)
from fastclr.speedrun.rungs import Rung, find_rung, load_rungs
from fastclr.speedrun.statistics import Z
from pipelines.system.terminal import one_line

RUNGS = "rungs.toml"
MAX_WARM_UP_S = 600.0
"""Untimed seconds of a GPU run for imports, compilers and captured graphs."""
OPEN_PARAMETERS = 25_000_000
LOSSES = ("nt_xent", "nt_logistic", "margin_triplet")
"""Losses of the division simclr, those of the paper."""
STATED = ("date", "about", "configurations_tried", "pflop_per_step")
"""Entries of record.json that do not follow from the logs."""
BESIDE = ("val_knn",)
"""Metrics of a step that are computed from labels."""


def check_record(folder: Path, root: Path | None = None) -> list[str]:
    """Return the rules that a record breaks, a sentence each; none if it holds.

    Args:
        folder: the record's folder, RUNG/DATE_NAME.
        root: the folder of rungs.toml and of the rungs' folders; None: two above the record.
    """
    root = root or folder.parents[1]
    missing = [name for name in (README, RECIPE, RECORD) if not (folder / name).is_file()]
    if missing:
        return [f"{folder} lacks {' and '.join(missing)}"]
    try:
        record, logs, again = Record.read(folder), read_logs(folder / LOGS), read_logs(folder / PREVIOUS)
        rung = find_rung(load_rungs(root / RUNGS), record.summary["rung"])
        if not logs:
            return [f"{folder} has no logs of seeds"]
        broken = [*check_seeds(rung, logs), *_recipe(folder, rung, logs), *_code(folder, record)]
        if not broken:
            records = records_of(root, rung)
            broken = [*_summary(record, rung, logs, again, records), *_again(record, logs, again, root)]
    except (ValueError, OSError) as error:
        return [one_line(error)]
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        return [f"{folder}: an entry is missing or of another type: {type(error).__name__} {one_line(error)}"]
    return broken


def check_seeds(rung: Rung, logs: Sequence[SeedLog]) -> list[str]:
    """Return the rules that the seeds of a record break: which ones there are, their steps, clocks and evaluations."""
    broken = list(_which_seeds(rung, logs))
    for log in logs:
        broken += [f"seed {log.trained['seed']}: {what}" for what in _seed(rung, log)]
    for name in (*SHARED, "recipe", "settings"):
        values = {json.dumps(log.start[name], sort_keys=True) for log in logs}
        if len(values) > 1:
            broken.append(
                f"{name} differs between the seeds; all must be run by one command, code and recipe"
            )
    return broken


def _which_seeds(rung: Rung, logs: Sequence[SeedLog]) -> Iterator[str]:
    seeds = [(log.start["seed"], log.trained["seed"], log.evaluated["seed"]) for log in logs]
    if seeds != [(k, k, k) for k in range(len(logs))]:
        yield f"the seeds are {', '.join(str(s[0]) for s in seeds)}; they must be 0, 1, 2 … without a choice"
    if len(logs) < rung.seeds:
        yield f"{len(logs)} seeds; {rung.id} needs {rung.seeds}"
    steps = sorted({log.trained["steps"] for log in logs})
    if len(steps) > 1:
        yield f"the seeds took {' and '.join(map(str, steps))} steps; all must take the same number"


def _seed(rung: Rung, log: SeedLog) -> Iterator[str]:
    """Yield what is wrong with a seed."""
    start, trained, evaluated = log.start, log.trained, log.evaluated
    seen = [name for name in BESIDE if any(name in step for step in log.steps)]
    if trained["labels_seen"] or seen:
        yield f"labels: the training process saw {trained['labels_seen']} of them{', and logged val_knn' * bool(seen)}"
    settings = start["settings"]
    total = num_steps(start["train"]["samples"], settings["train.epochs"], settings["train.batch_size"])
    last = log.steps[-1]["step"] if log.steps else 0
    if not trained["steps"] == total == last:
        yield f"steps: {trained['steps']} were taken and {last} logged, and the recipe has {total}"
    yield from _clock(rung, log)
    if evaluated["encoder_before"] != evaluated["encoder_after"]:
        yield "encoder: its weights or buffers changed during the evaluation"
    protocol = (evaluated["views_per_image"], evaluated["k"], evaluated["temperature"])
    if protocol != (1, min(K, evaluated["train_samples"]), TEMPERATURE):
        yield f"protocol: {protocol} views, k and T; it must be one view, k = {K}, T = {TEMPERATURE}"
    counts = tuple(evaluated[name] for name in ("train_samples", "test_samples", "num_classes"))
    if counts != (rung.bank_samples or rung.train_samples, rung.test_samples, rung.num_classes):
        yield f"data: {counts} training images, test images and classes; {rung.data} has others"
    side = min(start["train"]["side"], start["test"]["side"])
    if evaluated["size"] > side:
        yield f"size: tested at {evaluated['size']} px, more than the {side} px of the files"
    if rung.classes and start["machine_class"] not in rung.classes:
        yield f"machine_class {start['machine_class']}; {rung.id} has {', '.join(rung.classes)}"
    yield from _limits(rung, log)


def _clock(rung: Rung, log: SeedLog) -> Iterator[str]:
    start, trained, settings = log.start, log.trained, log.start["settings"]
    if rung.gpus:
        expected_s = trained["training_s"]
        if trained["warm_up_s"] > MAX_WARM_UP_S:
            yield f"warm_up: {trained['warm_up_s']:.0f} s without the clock; at most {MAX_WARM_UP_S:.0f}"
    else:
        expected_s = trained["cpu_s"] + start["conversion_cpu_s"]
        if trained["warm_up_s"]:
            yield "warm_up: there is none on a CPU, where the whole process counts"
        if (settings["train.threads"], settings["data.threads"]) != (1, 1):
            yield "threads: a seed on a CPU has one thread of torch and one loader thread"
        if start["conversion_cpu_s"] <= 0:
            yield "conversion_cpu_s is missing; the conversion counts"
    if not math.isclose(trained["clock_s"], expected_s, rel_tol=1e-9):
        yield f"clock_s is {trained['clock_s']}, and its parts add up to {expected_s}"
    if rung.budget_cpu_s is not None and trained["clock_s"] > rung.budget_cpu_s:
        over = trained["clock_s"] - rung.budget_cpu_s
        yield (
            f"budget: {trained['clock_s']:.1f} CPU seconds, {over:.1f} more than the "
            f"{rung.budget_cpu_s:.0f} of the rung"
        )


def _limits(rung: Rung, log: SeedLog) -> Iterator[str]:
    """Yield what the division does not admit."""
    division, parameters, config = (
        log.start["division"],
        log.trained["parameters"],
        config_of(log.start["recipe"]),
    )
    if division not in DIVISIONS:
        yield f"division {division!r}; there are {', '.join(DIVISIONS)}"
    most = rung.max_parameters if division == "simclr" else OPEN_PARAMETERS
    if parameters > most:
        yield f"division {division}: an encoder of {parameters:,} parameters, more than {most:,}"
    if division == "open":
        return
    model = config.model
    found = f"resnet-{model.depth}" if (model.encoder, model.width) == ("resnet", 1.0) else "another encoder"
    if rung.encoder not in ("any", found):
        yield f"division simclr: {found}, and {rung.id} has {rung.encoder}"
    views = sum(spec.num_views for spec in config.view_specs)
    if views != 2:
        yield f"division simclr: {views} views per image; it has two"
    if config.loss.name not in LOSSES:
        yield f"division simclr: the loss {config.loss.name}; it has {', '.join(LOSSES)}"


def config_of(recipe: str) -> Config:
    """Return the config of a recipe's text."""
    return from_table(tomllib.loads(recipe))


def _recipe(folder: Path, rung: Rung, logs: Sequence[SeedLog]) -> Iterator[str]:
    text, start = (folder / RECIPE).read_text(encoding="utf-8"), logs[0].start
    if text != start["recipe"]:
        yield f"{RECIPE} is not the recipe that the logs begin with"
    config = config_of(text)
    given = _given(tomllib.loads(text))
    settings = {name: json.loads(json.dumps(value)) for name, value in flatten(config).items()}
    for name, value in start["settings"].items():
        if value is not None and name not in given:
            yield f"{RECIPE} is not complete: it lacks {name}, which was {value}"
        elif name in settings and settings[name] != value:
            yield f"{RECIPE} has {name} {settings[name]}, and the run had {value}"
    if rung.epochs is not None and config.train.epochs != rung.epochs:
        yield f"{RECIPE} has {config.train.epochs} epochs, and {rung.id} {rung.epochs}"
    size = logs[0].evaluated["size"]
    if any(log.evaluated["size"] != size for log in logs) or size != config.eval_size:
        yield f"size: tested at {size} px, and the recipe says {config.eval_size}"


def _given(table: Any, name: str = "") -> set[str]:
    """Return the dotted names of the settings that a recipe's tables have, such as views.size or views[1].size."""
    if isinstance(table, dict):
        return {name} | {n for key in table for n in _given(table[key], f"{name}.{key}" if name else key)}
    if isinstance(table, list) and table and isinstance(table[0], dict):
        return {n for i, each in enumerate(table) for n in _given(each, f"{name}[{i}]")}
    return {name}


def _code(folder: Path, record: Record) -> Iterator[str]:
    summary, diff = record.summary, folder / DIFF
    if summary["changed"] and not (diff.is_file() and diff.read_text(encoding="utf-8").strip()):
        yield f"the code differs from commit {summary['commit']}, and {DIFF} does not say how"
    if not summary["commit"]:
        yield "no commit: run a record from a checkout, or set FASTCLR_COMMIT"
    if type(summary["configurations_tried"]) is not int or summary["configurations_tried"] < 1:
        yield "configurations_tried must say how many configurations were tried, this one included"


def _summary(
    record: Record, rung: Rung, logs: Sequence[SeedLog], again: Sequence[SeedLog], records: Sequence[Record]
) -> Iterator[str]:
    """Yield the numbers that do not follow from the logs, and the test that the record does not pass."""
    found = dict(record.summary)
    stated = {name: found[name] for name in STATED}
    expected = json.loads(json.dumps(summarize(rung, logs, again, records, stated)))
    for name in {**expected, **found}:
        if not _close(found.get(name), expected.get(name)):
            yield f"{RECORD}: {name} is {_short(found.get(name))}, and the logs give {_short(expected.get(name))}"
    yield from check_statistics(rung, expected, earlier(records, record.category, found["date"]))


def check_statistics(rung: Rung, summary: dict[str, Any], before: Sequence[Record]) -> Iterator[str]:
    """Yield the reasons why a record is not better than those before it, or does not reach the target."""
    z, against = summary["statistics"]["z"], summary["against"]
    needs_z = rung.target is not None or bool(before)
    if needs_z and (z is None or z < Z):
        aim = (
            f"the target of {rung.target:.1%}"
            if rung.target is not None
            else f"the mean of {before[-1].folder.name}"
        )
        shown = "no σ" if z is None else f"z = {z:.2f}, p = {summary['statistics']['p']:.3f}"
        yield f"the mean of {summary['mean']:.2%} is not significantly above {aim}: {shown}, needed z ≥ {Z}"
    if against is not None and rung.aims_at_time and against["clock_ratio"] >= 1:
        yield f"the time is {against['clock_ratio']:.3f} of that of {against['record']}; it must be shorter"
    if against is not None and rung.gpus and not against["run_again"]:
        yield f"{against['record']} was not run again in turn with this one; use --against"


def _again(record: Record, logs: Sequence[SeedLog], again: Sequence[SeedLog], root: Path) -> Iterator[str]:
    """Yield what is wrong with the seeds of the previous record that were run again."""
    against = record.summary["against"]
    if again and against is not None:
        recipe = (root / record.summary["rung"] / against["record"] / RECIPE).read_text(encoding="utf-8")
        if any(log.start["recipe"] != recipe for log in again):
            yield f"{PREVIOUS}/ was not run with the recipe of {against['record']}"
    if again and [log.trained["seed"] for log in again] != [log.trained["seed"] for log in logs]:
        yield f"{PREVIOUS}/ has other seeds than {LOGS}/"
    if any(log.start["machine_class"] != logs[0].start["machine_class"] for log in again):
        yield f"{PREVIOUS}/ was run on another class of machine"


def _close(a: Any, b: Any) -> bool:
    """Whether two values of JSON are equal, numbers up to rounding."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_close(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_close, a, b))
    if isinstance(a, float) and isinstance(b, (int, float)):
        return math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-12)
    return bool(a == b)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 100 else text[:97] + "…"
