"""Runs seeds of a record again and says whether it holds; the result is written beside the record."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from statistics import mean
from typing import Any

from fastclr.recipes import load_recipe
from fastclr.speedrun.check import RUNGS, check_record
from fastclr.speedrun.machine import machine_class
from fastclr.speedrun.record import RECIPE, VERIFIED, Record, SeedLog
from fastclr.speedrun.run import Speedrun, run_seeds
from fastclr.speedrun.rungs import Rung, find_rung, load_rungs
from fastclr.speedrun.statistics import Sample, Z, z_of_difference
from pipelines import BetonReader


def verify(
    folder: Path,
    train: list[str],
    test: list[str],
    *,
    seeds: int = 1,
    parallel: int = 2,
    work: Path | None = None,
    command: str = "",
    note: Callable[[str], None] = print,
) -> bool:
    """Run a record's recipe again; write DIR/verified/DATE.json and its logs; return whether the record holds.

    It holds if it keeps the rules, if the mean is not significantly below the recorded one (z > −2.33), and if no seed
    exceeds the budget of the rung.  The clock of another class of machine is shown and not judged.

    Args:
        folder: of the record.
        train, test: files with the record's fingerprints.
        seeds: number of seeds, from 0.
        parallel: seeds side by side on a CPU.
        work: folder of the runs; None: runs/speedrun/RUNG/verify-NAME.
        command: for the log.
        note: receives lines for the user.

    Raises:
        ValueError: files with other fingerprints; see also `run_seeds`.
    """
    root, record = folder.resolve().parents[1], Record.read(folder)
    broken, summary = check_record(folder.resolve()), record.summary
    for what in broken:
        note(f"breaks the rules: {what}")
    rung = find_rung(load_rungs(root / RUNGS), summary["rung"])
    for files, name in ((train, "train"), (test, "test")):
        with BetonReader(files) as reader:
            if reader.fingerprint != summary[name]["fingerprint"]:
                raise ValueError(
                    f"--{name} {reader.path} is another file than the record's: fingerprint {reader.fingerprint}, "
                    f"needed {summary[name]['fingerprint']}; convert it with the same version and options"
                )
    run = Speedrun(
        rung=rung,
        recipe=load_recipe(str(folder / RECIPE)),
        train=train,
        test=test,
        seeds=seeds,
        name=f"verify-{summary['name']}",
        work=work or Path("runs") / "speedrun" / rung.id / f"verify-{summary['name']}",
        division=summary["division"],
        parallel=min(parallel, seeds),
        check_budget=False,
        command=command,
    )
    logs, _ = run_seeds(run, note)
    result = judge(rung, record, logs, machine_class(rung.gpus))
    result |= {"holds": result["holds"] and not broken, "rules_broken": broken, "command": command}
    _write(folder / VERIFIED, result, logs)
    note(result["verdict"])
    return bool(result["holds"])


def judge(rung: Rung, record: Record, logs: list[SeedLog], class_name: str) -> dict[str, Any]:
    """Return whether seeds that were run again agree with a record, with the numbers that say so."""
    summary, again = record.summary, Sample.of([log.evaluated[rung.metric] for log in logs])
    sigma = summary["statistics"]["sigma"]
    # a rung with one seed and no σ: the difference is shown, and nothing can be said against it
    z = None if sigma is None else z_of_difference(again, record.accuracies, sigma)
    clocks = [log.trained["clock_s"] for log in logs]
    same_class = class_name == summary["machine_class"]
    over = [c for c in clocks if same_class and rung.budget_cpu_s is not None and c > rung.budget_cpu_s]
    holds = (z is None or z > -Z) and not over
    shown = "no σ" if z is None else f"z = {z:+.2f}"
    verdict = (
        f"{'holds' if holds else 'does not hold'}: {again.mean:.2%} {rung.metric} (n = {again.n}) where the record has "
        f"{summary['mean']:.2%} (n = {len(summary['seeds'])}), {shown}; {mean(clocks) / 60:.2f} minutes where it has "
        f"{summary['clock_s']['mean'] / 60:.2f}"
        + (f"; {len(over)} above the budget" if over else "")
        + ("" if same_class else f" (another class, {class_name}: not judged)")
    )
    return {
        "holds": holds,
        "verdict": verdict,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine_class": class_name,
        "processor": logs[0].start["processor"],
        "commit": logs[0].start["commit"],
        "mean": again.mean,
        "seeds": [log.row for log in logs],
        "z": z,
        "clock_ratio": mean(clocks) / summary["clock_s"]["mean"],
    }


def _write(folder: Path, result: dict[str, Any], logs: list[SeedLog]) -> None:
    name = str(result["date"]).replace(":", "")
    folder.mkdir(exist_ok=True)
    (folder / f"{name[:17]}.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for log in logs:
        log.write(folder / f"{name[:17]}_seed{log.start['seed']}.jsonl")
