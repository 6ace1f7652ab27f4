"""Writes the folder of a record from its logs, checks it, and moves it to its place."""

import shutil
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fastclr.speedrun.check import RUNGS, check_record, config_of
from fastclr.speedrun.flop import mean_step_pflop
from fastclr.speedrun.machine import uncommitted_changes
from fastclr.speedrun.record import (
    DIFF,
    LOGS,
    PREVIOUS,
    README,
    RECIPE,
    RECORD,
    Record,
    SeedLog,
    records_of,
    summarize,
)
from fastclr.speedrun.rungs import Rung
from fastclr.speedrun.seed import write_whole


def write_record(
    folder: Path,
    root: Path,
    rung: Rung,
    logs: Sequence[SeedLog],
    again: Sequence[SeedLog] = (),
    *,
    about: str = "",
    configurations_tried: int = 1,
) -> dict[str, Any]:
    """Write a record's folder anew from the logs; return the content of its record.json.

    Args:
        folder: an old one is replaced.
        root: the folder of rungs.toml and of the records.
        rung: the rung.
        logs, again: of the seeds, and of the previous record's.
        about: what changed and why.
        configurations_tried: how many configurations were tried until this one.
    """
    shutil.rmtree(folder, ignore_errors=True)
    for name, of in ((LOGS, logs), (PREVIOUS, again)):
        for log in of:
            (folder / name).mkdir(parents=True, exist_ok=True)
            log.write(folder / name / f"seed{log.start['seed']}.jsonl")
    recipe = logs[0].start["recipe"]
    (folder / RECIPE).write_text(recipe, encoding="utf-8")
    stated = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "about": about,
        "configurations_tried": configurations_tried,
        "pflop_per_step": mean_step_pflop(config_of(recipe), logs[0].start["train"]["samples"]),
    }
    summary = summarize(rung, logs, again, records_of(root, rung), stated)
    if summary["changed"]:
        (folder / DIFF).write_text(uncommitted_changes(), encoding="utf-8")
    (folder / README).write_text(_page(rung, summary), encoding="utf-8")
    write_whole(folder / RECORD, summary)
    return summary


def publish(folder: Path, root: Path, rung: Rung) -> Path:
    """Check a record's folder and move it to ROOT/RUNG/DATE_NAME; return the new folder.

    Raises:
        ValueError: the record breaks a rule; the message has all that it breaks, and the folder stays where it is.
        FileExistsError: there is a record of this name.
    """
    assert (root / RUNGS).exists()
    broken = check_record(folder, root)
    if broken:
        raise ValueError(f"no record, {folder} breaks the rules: {'; '.join(broken)}")
    summary = Record.read(folder).summary
    place = root / rung.id / f"{summary['date'][:10]}_{summary['name']}"
    if place.exists():
        raise FileExistsError(f"{place} exists; choose another --name")
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(folder, place)
    return place


def outcome_line(rung: Rung, summary: Mapping[str, Any]) -> str:
    """Return the result of a command in a line."""
    clock, n = summary["clock_s"], len(summary["seeds"])
    spread = "" if summary["sd"] is None else f" ± {100 * summary['sd']:.2f}"
    return (
        f"{rung.id}: {100 * summary['mean']:.2f}{spread} % {rung.metric} (n = {n}), "
        f"{clock['mean'] / 60:.2f} minutes ({clock['min'] / 60:.2f} to {clock['max'] / 60:.2f})"
    )


def _page(rung: Rung, summary: Mapping[str, Any]) -> str:
    """Return the README of a record."""
    statistics, against = summary["statistics"], summary["against"]
    tried = summary["configurations_tried"]
    lines = [
        f"# {rung.id}: {summary['name']}",
        "",
        summary["about"] or "Not described.",
        "",
        f"{outcome_line(rung, summary)}. Division {summary['division']}, {summary['machine_class']} "
        f"({summary['processor']}), {summary['epochs']} epochs, {summary['steps']:,} steps, "
        f"{summary['pflop']:.3g} PFLOP, {summary['parameters'] / 1e6:.2f} million parameters, tested at "
        f"{summary['test_size']} px. Configurations tried: {tried}.",
        "",
        "| seed | kNN | kNN, k = 10 | linear | minutes | CPU min | wall min |",
        "|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for seed in summary["seeds"]:
        linear = "" if seed["linear"] is None else f"{seed['linear']:.2%}"
        minutes = " | ".join(f"{seed[name] / 60:.2f}" for name in ("clock_s", "cpu_s", "wall_s"))
        lines.append(f"| {seed['seed']} | {seed['knn']:.2%} | {seed['knn10']:.2%} | {linear} | {minutes} |")
    if statistics["z"] is not None:
        aim = f"the target of {rung.target:.1%}" if rung.target is not None else f"`{against['record']}`"
        lines += [
            "",
            f"Above {aim} with z = {statistics['z']:.2f}, p = {statistics['p']:.1e} "
            f"(σ = {100 * statistics['sigma']:.2f} points).",
        ]
    if against is not None:
        lines += [
            "",
            f"Against `{against['record']}`: {100 * against['difference']:+.2f} points, {against['clock_ratio']:.3f} "
            f"of its time{', run again in turn with it' if against['run_again'] else ''}.",
        ]
    lines += ["", f"    {summary['command']}", ""]
    return "\n".join(lines)
