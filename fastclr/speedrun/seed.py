"""Runs one seed: a process that trains it, one that evaluates it, and its log; what is finished is kept."""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from fastclr.config import Config, flatten
from fastclr.recipes import to_toml
from fastclr.speedrun.processes import Processes, Spent
from fastclr.speedrun.record import RECIPE, SeedLog, read_log
from fastclr.speedrun.rungs import Rung
from fastclr.speedrun.worker import Job
from fastclr.train.sinks import read_metrics

WORKER = "fastclr.speedrun.worker"


@dataclass(frozen=True)
class SeedRunner:
    """Runs seeds of one speedrun, from several threads."""

    rung: Rung
    train: Sequence[str]
    test: Sequence[str]
    start: Mapping[str, Any]
    """What the logs of all seeds begin with."""
    processes: Processes
    environment: Mapping[str, str]
    note: Callable[[str], None]

    def run(self, config: Config, seed: int, seeds: Path, logs: Path) -> SeedLog:
        """Train and evaluate a seed, unless its log is there already; return the log.

        A training that was interrupted begins anew: half a run would need the sum of two clocks.

        Args:
            config: the complete recipe.
            seed: the seed, from 0.
            seeds: the folder that holds a folder per seed.
            logs: the folder of the logs.
        """
        log_path, what = logs / f"seed{seed}.jsonl", f"{logs.name} seed {seed}"
        if log_path.exists():
            self.note(f"{what}: finished before")
            return read_log(log_path)
        folder = (seeds / str(seed)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        logs.mkdir(exist_ok=True)
        # the recipe of all seeds is that of seed 0; a job names its seed
        config = replace(config, train=replace(config.train, seed=0))
        (folder / RECIPE).write_text(to_toml(config), encoding="utf-8")
        trained, evaluated = folder / "trained.json", folder / "evaluated.json"
        if not trained.exists():
            self._train(folder, seed, trained, what)
        if not evaluated.exists():
            self._process("evaluate", folder, seed, evaluated, self.test)
        results = {path: json.loads(path.read_text(encoding="utf-8")) for path in (trained, evaluated)}
        settings = json.loads(json.dumps(flatten(config)))
        first = {**self.start, "seed": seed, "recipe": to_toml(config), "settings": settings}
        log = SeedLog(first, read_metrics(folder / "run"), results[trained], results[evaluated])
        log.write(folder / "log.partial")
        (folder / "log.partial").replace(log_path)
        accuracy = results[evaluated][self.rung.metric]
        self.note(f"{what}: {accuracy:.2%} {self.rung.metric}")
        return log

    def _train(self, folder: Path, seed: int, trained: Path, what: str) -> None:
        """Train the seed in a process, and write what it says and the times that the system counted."""
        shutil.rmtree(folder / "run", ignore_errors=True)
        self.note(f"{what}: training")
        result = folder / "training.json"
        spent = self._process("train", folder, seed, result, [], max(1, self.rung.gpus))
        found = json.loads(result.read_text(encoding="utf-8"))
        clock_s = found["training_s"] if self.rung.gpus else spent.cpu_s + self.start["conversion_cpu_s"]
        found |= {"clock_s": clock_s, "cpu_s": spent.cpu_s, "wall_s": spent.wall_s}
        write_whole(trained, found)
        self.note(f"{what}: {clock_s / 60:.2f} minutes on the clock, {spent.wall_s / 60:.1f} of wall time")

    def _process(
        self,
        kind: Literal["train", "evaluate"],
        folder: Path,
        seed: int,
        result: Path,
        test: Sequence[str],
        ranks: int = 1,
    ) -> Spent:
        job = Job(
            kind,
            str(folder / RECIPE),
            seed,
            absolute(self.train),
            absolute(test),
            str(folder / "run"),
            str(result),
            warm_up=self.rung.gpus > 0,
            metric=self.rung.metric,
        )
        path, output = job.write(folder / f"{kind}-job.json"), folder / f"{kind}-output.txt"
        return self.processes.run(WORKER, [str(path)], output, self.environment, ranks)


def write_whole(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file that is complete whenever it exists."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)


def absolute(files: Sequence[str]) -> list[str]:
    """Return the paths of files for a process that may run elsewhere."""
    return [str(Path(file).absolute()) for file in files]
