"""Runs all seeds of a speedrun in processes of their own, and writes the record; finished seeds are kept.

WORK/                      runs/speedrun/RUNG/NAME
    identity.json          what the command runs; a folder of another command is refused
    recipe.toml            the complete recipe, its epochs fitted if asked for
    conversion.json        CPU seconds of the conversion
    seeds/K/               a seed: jobs, output, run folder, trained.json, evaluated.json
    logs/seedK.jsonl       its log, once it is finished
    again/…, previous/…    the same of the previous record (--against)
    record/                the record, until it has passed the rules
"""

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fastclr.config import Config
from fastclr.device import pick_device
from fastclr.optim import num_steps
from fastclr.recipes import load_recipe, to_toml
from fastclr.speedrun.fit import RESERVE, TIMED_FRACTION, StepTimes, fit_epochs, predicted_s
from fastclr.speedrun.machine import describe, machine_class, process_environment, source_digest
from fastclr.speedrun.processes import Processes
from fastclr.speedrun.record import LOGS, PREVIOUS, RECIPE, SeedLog
from fastclr.speedrun.rungs import Rung
from fastclr.speedrun.seed import WORKER, SeedRunner, absolute
from fastclr.speedrun.worker import Job
from fastclr.train.build import resolve
from pipelines import BetonReader
from pipelines.system.versions import git_commit, package_versions, processor_name

COMMIT = "FASTCLR_COMMIT"
"""Environment variable with the commit of a package that runs outside a checkout."""
PACKAGES = ("fastclr", "torch", "torchvision", "numpy", "numba", "simplejpeg")


@dataclass(frozen=True, kw_only=True)
class Speedrun:
    """What a command runs."""

    rung: Rung
    recipe: Config
    """The recipe as it was given."""
    train: list[str]
    test: list[str]
    seeds: int
    name: str
    work: Path
    division: str = "simclr"
    against: Path | None = None
    """Folder of the previous record, to be run again in turn with this one."""
    fit: bool = False
    """Fit the epochs to the budget."""
    reserve: float = RESERVE
    source: list[str] | None = None
    """What `fastclr convert` takes: converted once, and its CPU time counted."""
    parallel: int = 2
    """Seeds that run side by side on a CPU."""
    check_budget: bool = True
    """Refuse a recipe that will probably exceed the budget; a record that is verified is run as it is."""
    command: str = ""


def run_seeds(run: Speedrun, note: Callable[[str], None] = print) -> tuple[list[SeedLog], list[SeedLog]]:
    """Run what is not finished yet, and return the logs of all seeds and of the previous record's.

    Raises:
        ValueError: a machine or files that don't fit the rung; a work folder of another command; a process that
            failed.
        OSError: a file that can't be read or written.
        KeyboardInterrupt: Ctrl-C or SIGTERM; the same command continues.
    """
    class_name = machine_class(run.rung.gpus)
    environment = process_environment(class_name)
    start = _first_line(run, class_name)
    _claim(run, start)
    with _interruptible() as processes:
        start |= _conversion(run, start, processes, environment, note)
        config = _complete_recipe(run, start, processes, environment, note)
        again = None if run.against is None else load_recipe(str(run.against / RECIPE))
        tasks: list[tuple[Config, int, Path, Path]] = []
        for seed in range(run.seeds):
            tasks.append((config, seed, run.work / "seeds", run.work / LOGS))
            if again is not None:
                tasks.append((again, seed, run.work / "again", run.work / PREVIOUS))

        seeds = SeedRunner(run.rung, run.train, run.test, start, processes, environment, note)
        at_once = 1 if run.rung.gpus else run.parallel
        logs = _in_parallel(lambda task: seeds.run(*task), tasks, at_once, processes)
    step = 1 if again is None else 2
    return logs[::step], logs[1::step] if again is not None else []


def _first_line(run: Speedrun, class_name: str) -> dict[str, Any]:
    """Return what the logs of all seeds begin with, except what is not known yet."""
    commit = git_commit(Path(__file__))
    with BetonReader(run.train) as train, BetonReader(run.test) as test:
        files = {"train": _identity(train), "test": _identity(test)}
        counts = (len(train), len(test), train.num_classes)
    rung = run.rung
    if counts != (rung.train_samples, rung.test_samples, rung.num_classes):
        raise ValueError(
            f"--train and --test hold {counts[0]:,} and {counts[1]:,} images of {counts[2]} classes; {rung.id} is run "
            f"on {rung.data}: {rung.train_samples:,} and {rung.test_samples:,} images of {rung.num_classes} classes"
        )
    return {
        "rung": rung.id,
        "name": run.name,
        "division": run.division,
        "command": run.command,
        # in an image without git and .git the user says it; the hash of the code can be compared with that commit's
        "commit": os.environ.get(COMMIT) if commit is None else commit.hash,
        "changed": commit is not None and commit.changed,
        "code": source_digest(),
        "machine_class": class_name,
        "processor": processor_name(),
        "machine": dict(describe(rung.gpus)),
        "versions": package_versions(*PACKAGES),
        **files,
    }


def _identity(reader: BetonReader) -> dict[str, Any]:
    shorter = np.minimum(reader.heights, reader.widths)
    return {"fingerprint": reader.fingerprint, "samples": len(reader), "side": int(np.median(shorter))}


def _claim(run: Speedrun, start: dict[str, Any]) -> None:
    """Create the work folder, or check that it is the one of this command.

    Raises:
        ValueError: it holds seeds of another recipe, code, machine or file.
    """
    names = ("rung", "division", "code", "machine_class", "train", "test")
    identity = {
        **{name: start[name] for name in names},
        "recipe": to_toml(run.recipe),
        "fit": run.fit,
        "against": None if run.against is None else run.against.name,
    }
    path = run.work / "identity.json"
    if not path.exists():
        run.work.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(identity, indent=1) + "\n", encoding="utf-8")
        return
    saved = json.loads(path.read_text(encoding="utf-8"))
    changed = [name for name in identity if saved.get(name) != identity[name]]
    if changed:
        raise ValueError(
            f"{run.work} holds seeds with other {' and '.join(changed)}, which one record can't mix; choose another "
            "--name, or delete the folder"
        )


def _conversion(
    run: Speedrun,
    start: dict[str, Any],
    processes: Processes,
    environment: dict[str, str],
    note: Callable[[str], None],
) -> dict[str, Any]:
    """Return the CPU seconds of the conversion, which are measured once, and where they are from."""
    path = run.work / "conversion.json"
    if path.exists():
        return json.loads(path.read_text(encoding="utf-8"))
    result: dict[str, Any] = {"conversion_cpu_s": 0.0, "conversion": "not in the clock of a GPU"}
    if run.source is not None:
        out = run.work / "converted.beton"
        note(f"converting {' '.join(run.source)} in one process")
        arguments = ["convert", *run.source, str(out), "--workers", "1"]
        spent = processes.run("fastclr.cli.main", arguments, run.work / "conversion.txt", environment)
        with BetonReader(out) as reader:
            if reader.fingerprint != start["train"]["fingerprint"]:
                raise ValueError(
                    f"--source {' '.join(run.source)} converts to another file than --train; convert with the same "
                    "options, those of fastclr convert without any"
                )
        out.unlink()
        out.with_suffix(".json").unlink(missing_ok=True)
        result = {"conversion_cpu_s": spent.cpu_s, "conversion": "measured by this command (--source)"}
    elif not run.rung.gpus:
        if run.rung.conversion_cpu_s is None:
            raise ValueError(
                f"{run.rung.id} counts the conversion: give --source, what --train was converted from"
            )
        result = {
            "conversion_cpu_s": run.rung.conversion_cpu_s,
            "conversion": "measured once for this data set (rungs.toml)",
        }
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return result


def complete(config: Config, rung: Rung, reader: BetonReader) -> Config:
    """Return the recipe of a rung with every setting decided: on a CPU one thread of each kind, on GPUs a rank each."""
    if rung.gpus:
        device = pick_device("cuda")
        return resolve(config, reader, device, rung.gpus)
    config = replace(
        config,
        data=replace(config.data, threads=1),
        train=replace(config.train, threads=1, device="cpu"),
    )
    return resolve(config, reader, pick_device("cpu"))


def _complete_recipe(
    run: Speedrun,
    start: dict[str, Any],
    processes: Processes,
    environment: dict[str, str],
    note: Callable[[str], None],
) -> Config:
    """Return the recipe that the seeds run, written once to WORK/recipe.toml.

    On a CPU some steps are timed first, in as many processes as will run side by side: that compiles the kernels into
    their cache, and tells whether the recipe fits the budget.

    Raises:
        ValueError: it does not fit, and the epochs are not to be fitted.
    """
    path = run.work / RECIPE
    if path.exists():
        return load_recipe(str(path))
    with BetonReader(run.train) as reader:
        config, num_images = complete(run.recipe, run.rung, reader), len(reader)
    if not run.rung.gpus:
        times = _step_times(run, config, processes, environment)
        budget_s = run.rung.budget_cpu_s
        if budget_s is not None:
            budget_s -= start["conversion_cpu_s"]
            if run.fit:
                config = fit_epochs(config, num_images, times, budget_s, run.reserve)
            elif run.check_budget and (needed_s := predicted_s(config, num_images, times)) > budget_s:
                raise ValueError(
                    f"{config.train.epochs} epochs need about {needed_s:.0f} CPU seconds here, and the budget without "
                    f"the conversion is {budget_s:.0f}; use --fit, or lower train.epochs"
                )
        needed_s, epochs = predicted_s(config, num_images, times), config.train.epochs
        note(
            f"{epochs} epochs, {num_steps(num_images, epochs, config.train.batch_size):,} steps: "
            f"about {needed_s / 60:.1f} CPU minutes a seed, {start['conversion_cpu_s']:.0f} s of conversion apart"
        )
    path.write_text(to_toml(config), encoding="utf-8")
    return config


def _step_times(
    run: Speedrun, config: Config, processes: Processes, environment: dict[str, str]
) -> StepTimes:
    """Return the CPU seconds of a step where as many processes run side by side as seeds will; the slowest counts."""
    folder = run.work / "timing"
    folder.mkdir(exist_ok=True)
    recipe = folder / RECIPE
    recipe.write_text(to_toml(config), encoding="utf-8")
    timing_s = TIMED_FRACTION * (run.rung.budget_cpu_s or 0.0)

    def work(number: int) -> StepTimes:
        result = folder / f"{number}.json"
        paths = str(recipe.absolute()), str(result.absolute())
        job = Job("time", paths[0], 0, absolute(run.train), [], "", paths[1], timing_s=timing_s)
        path = job.write(folder / f"job{number}.json")
        processes.run(WORKER, [str(path.absolute())], folder / f"output{number}.txt", environment)
        return StepTimes(**json.loads(result.read_text(encoding="utf-8")))

    found = _in_parallel(work, list(range(run.parallel)), run.parallel, processes)
    columns = zip(*(times.step_s for times in found), strict=True)
    return StepTimes(max(times.startup_s for times in found), [max(column) for column in columns])


def _in_parallel(
    work: Callable[[Any], Any], tasks: list[Any], at_once: int, processes: Processes
) -> list[Any]:
    """Return the results of the tasks, in their order; at the first error all processes are ended."""
    with ThreadPoolExecutor(at_once) as pool:
        futures = [pool.submit(work, task) for task in tasks]
        try:
            return [future.result() for future in futures]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            processes.end()
            raise


@contextmanager
def _interruptible() -> Iterator[Processes]:
    """Yield the processes of the block, which SIGTERM ends like Ctrl-C."""
    processes = Processes()
    if threading.current_thread() is not threading.main_thread():
        yield processes
        return

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield processes
    finally:
        processes.end()
        signal.signal(signal.SIGTERM, before)
