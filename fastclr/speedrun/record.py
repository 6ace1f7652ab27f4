"""A record: its folder, the logs of its seeds, and the summary that is computed from them.

RUNG/DATE_NAME/
    README.md              what changed and why, what failed
    recipe.toml            the complete recipe
    code.diff              difference from the commit; only if there is one
    record.json            the summary of the logs (`summarize`)
    logs/seedK.jsonl       first line: command, commit, recipe, machine; then the metrics; last: training and evaluation
    previous/seedK.jsonl   the previous record, run again in turn with this one; only with --against
    verified/              results of `fastclr speedrun verify`
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from fastclr.speedrun.rungs import Rung
from fastclr.speedrun.statistics import Sample, p_value, z_of_difference, z_of_target

FORMAT = "fastclr speedrun 1"
RECORD, RECIPE, README, DIFF = "record.json", "recipe.toml", "README.md", "code.diff"
LOGS, PREVIOUS, VERIFIED = "logs", "previous", "verified"
DIVISIONS = ("simclr", "open")
SHARED = (
    *("rung", "name", "division", "machine_class", "command", "commit", "changed", "code"),
    *("train", "test", "conversion_cpu_s", "conversion", "versions", "processor"),
)
"""Entries of a log's first line that are the same in all logs of a record, and are in its summary."""


@dataclass(frozen=True)
class SeedLog:
    """The log of a seed."""

    start: dict[str, Any]
    """Command, commit, recipe, machine, files."""
    steps: list[dict[str, Any]]
    """Metrics, as in metrics.jsonl."""
    trained: dict[str, Any]
    """Steps, times, labels that the training process saw, parameters of the encoder."""
    evaluated: dict[str, Any]
    """Accuracies, and how they were measured."""

    def write(self, path: Path) -> None:
        """Write the log, one JSON object a line."""
        lines = [
            {"kind": "start", **self.start},
            *({"kind": "step", **record} for record in self.steps),
            {"kind": "trained", **self.trained},
            {"kind": "evaluated", **self.evaluated},
        ]
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        path.write_text(text, encoding="utf-8")

    @property
    def row(self) -> dict[str, Any]:
        """What the summary says of a seed."""
        return {
            "seed": self.trained["seed"],
            **{name: self.evaluated[name] for name in ("knn", "knn10", "linear")},
            **{name: self.trained[name] for name in ("clock_s", "cpu_s", "wall_s")},
        }


def read_log(path: Path) -> SeedLog:
    """Read the log of a seed.

    Raises:
        ValueError: it is not such a log, or not complete.
        OSError: it can't be read.
    """
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        kinds = [line.pop("kind") for line in lines]
    except (ValueError, KeyError, AttributeError):
        raise ValueError(f"{path} is no log of a seed: JSON objects with a kind, one a line") from None
    expected = ["start", *["step"] * (len(kinds) - 3), "trained", "evaluated"]
    if kinds != expected:
        raise ValueError(
            f"{path} has {len(kinds)} lines; they must be start, steps, trained, evaluated, in this order"
        )
    return SeedLog(lines[0], lines[1:-2], lines[-2], lines[-1])


def read_logs(folder: Path) -> list[SeedLog]:
    """Return the logs of a folder, in the order of their seeds; none if there is no folder."""
    paths = sorted(folder.glob("seed*.jsonl"), key=lambda path: int(path.stem.removeprefix("seed")))
    return [read_log(path) for path in paths]


@dataclass(frozen=True)
class Record:
    """A record that was written, as its table and later records see it."""

    folder: Path
    summary: Mapping[str, Any]

    @classmethod
    def read(cls, folder: Path) -> "Record":
        """Read record.json.  ValueError: it is no record."""
        path = folder / RECORD
        try:
            summary = json.loads(path.read_text(encoding="utf-8"))
            if summary["format"] != FORMAT:
                raise KeyError("format")
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{path} is no {FORMAT!r}") from None
        return cls(folder, summary)

    @property
    def category(self) -> tuple[str, str]:
        """Class of the machine and division: records of one category compete."""
        return self.summary["machine_class"], self.summary["division"]

    @property
    def accuracies(self) -> Sample:
        """The accuracies of the metric that decides."""
        return Sample.of([seed[self.summary["metric"]] for seed in self.summary["seeds"]])


def records_of(root: Path, rung: Rung) -> list[Record]:
    """Return the records of a rung, the oldest first."""
    folders = [path.parent for path in (root / rung.id).glob(f"*/{RECORD}")]
    return sorted((Record.read(folder) for folder in folders), key=lambda record: record.summary["date"])


def earlier(records: Iterable[Record], category: tuple[str, str], date: str) -> list[Record]:
    """Return the records of a category that are older than a date."""
    return [r for r in records if r.category == category and r.summary["date"] < date]


def summarize(
    rung: Rung,
    logs: Sequence[SeedLog],
    again: Sequence[SeedLog],
    records: Iterable[Record],
    stated: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the content of record.json: everything that follows from the logs and the earlier records.

    Args:
        rung: the rung.
        logs: one per seed.
        again: logs of the previous record, run again in turn with these; may be empty.
        records: the rung's records; only earlier ones of the category count.
        stated: what does not follow from the logs: date, about, configurations_tried, pflop_per_step.
    """
    start, rows = logs[0].start, [log.row for log in logs]
    sample = Sample.of([row[rung.metric] for row in rows])
    clocks = [row["clock_s"] for row in rows]
    before = earlier(records, (start["machine_class"], start["division"]), stated["date"])
    steps, settings = logs[0].trained["steps"], start["settings"]
    return {
        "format": FORMAT,
        **stated,
        **{name: start[name] for name in SHARED},
        "metric": rung.metric,
        "seeds": rows,
        "mean": sample.mean,
        "sd": sample.sd,
        "mean_knn10": mean(row["knn10"] for row in rows),
        "clock_s": {"mean": mean(clocks), "min": min(clocks), "max": max(clocks)},
        "wall_s": mean(row["wall_s"] for row in rows),
        "epochs": settings["train.epochs"],
        "steps": steps,
        "pflop": stated["pflop_per_step"] * steps,
        "parameters": logs[0].trained["parameters"],
        "test_size": logs[0].evaluated["size"],
        "statistics": _statistics(rung, sample, before, again),
        "against": _comparison(rung, sample, clocks, before, again),
    }


def _statistics(
    rung: Rung, sample: Sample, before: Sequence[Record], again: Sequence[SeedLog]
) -> dict[str, Any]:
    """Return σ, z and p; all are None for the first record of a rung that has no target."""
    own = before[0].accuracies.sd if before else sample.sd
    sigma = own if rung.sigma == "baseline" else rung.sigma
    z: float | None = None
    if sigma is not None and rung.target is not None:
        z = z_of_target(sample, rung.target, sigma)
    elif sigma is not None and before:
        z = z_of_difference(sample, _previous_sample(rung, before, again), sigma)
    return {"sigma": sigma, "z": z, "p": None if z is None else p_value(z)}


def _comparison(
    rung: Rung,
    sample: Sample,
    clocks: Sequence[float],
    before: Sequence[Record],
    again: Sequence[SeedLog],
) -> dict[str, Any] | None:
    """Return how the record compares with the previous one; None for the first."""
    if not before:
        return None
    previous = _previous_sample(rung, before, again)
    stored = [row["clock_s"] for row in before[-1].summary["seeds"]]
    clock_s = mean([log.trained["clock_s"] for log in again] or stored)
    return {
        "record": before[-1].folder.name,
        "run_again": bool(again),
        "n": previous.n,
        "mean": previous.mean,
        "clock_s": clock_s,
        "difference": sample.mean - previous.mean,
        "clock_ratio": mean(clocks) / clock_s,
    }


def _previous_sample(rung: Rung, before: Sequence[Record], again: Sequence[SeedLog]) -> Sample:
    if again:
        return Sample.of([log.evaluated[rung.metric] for log in again])
    return before[-1].accuracies
