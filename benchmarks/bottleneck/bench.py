"""`fastclr bench verdict`: whether the loader or the model limits a training run, and what to change."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.table import Table

from benchmarks.bottleneck.measure import measure_run
from benchmarks.bottleneck.recommend import Facts, Speeds, advice, facts_of
from benchmarks.core.machine import describe
from benchmarks.core.report import check_out, save
from fastclr.arguments import call
from fastclr.config import Config
from fastclr.device import pick_device
from fastclr.recipes import recipe_of
from fastclr.train.build import resolve
from pipelines import BetonReader

NOISY = 0.03
"""Uncertainty of the loader's influence on a step, above which it says nothing."""


def main(argv: list[str]) -> None:
    """Run the command."""
    recipe = recipe_of(argv, "fastclr bench verdict")

    def verdict(
        name: Annotated[
            tyro.conf.Positional[str],
            tyro.conf.arg(metavar="RECIPE", help="Name of a recipe, or path of a TOML file."),
        ],
        train: Annotated[Path, tyro.conf.arg(metavar="FILE.beton", help="Images to train on.")],
        rounds: Annotated[int, tyro.conf.arg(help="Rounds; everything is measured once in each.")] = 5,
        steps: Annotated[int, tyro.conf.arg(help="Training steps that are timed in each round and way.")] = 5,
        out: Annotated[
            Path | None, tyro.conf.arg(metavar="FILE.json", help="Where to write the result.")
        ] = None,
        config: Annotated[Config, tyro.conf.arg(name="")] = recipe,
    ) -> None:
        """Measure the loader alone, the training step alone on a canned batch, and both together.

        On a CPU the loader and the training step get threads of their own: --data.threads of them (1 unless
        given), and --train.threads (of more than two cores the others, unless given).
        """
        if rounds < 1 or steps < 1:
            raise ValueError("--rounds and --steps must be at least 1")
        check_out(out)
        _verdict(name, train, config, rounds, steps, out)

    call(verdict, argv, "fastclr bench verdict")


def _verdict(name: str, file: Path, config: Config, rounds: int, steps: int, out: Path | None) -> None:
    console = Console()
    device = pick_device(config.train.device, option="--train.device")
    with BetonReader(file) as reader, console.status("measuring"):
        resolved = resolve(config, reader, device)
        facts = facts_of(resolved, reader)
        speeds = measure_run(resolved, reader, device, rounds, steps)
    limits = "loader" if speeds.loader < speeds.model else "model"
    advised = advice(facts, speeds)
    console.print(_table(name, facts, speeds))
    console.print(f"The {limits} limits: the other is {speeds.factor:.1f} times as fast.", style="bold")
    for line in advised:
        console.print(f"  • {line}", markup=False, soft_wrap=True)
    if out is not None:
        report = {
            "benchmark": "verdict",
            "machine": describe(),
            "recipe": name,
            "file": reader.path.name,
            "settings": {**asdict(facts), "rounds": rounds, "steps": steps},
            "results": asdict(speeds),
            "limits": limits,
            "factor": speeds.factor,
            "interference": speeds.interference,
            "uncertainty": speeds.uncertainty,
            "advice": advised,
        }
        save(out, report)
        console.print(f"wrote {out}")


def _table(name: str, facts: Facts, speeds: Speeds) -> Table:
    table = Table(
        title=f"{name} on {facts.device}: engine {facts.engine}, {facts.loader_threads} loader threads, "
        f"{facts.train_threads} training threads, batches of {facts.batch_size}",
        title_justify="left",
        box=None,
    )
    table.add_column("")
    table.add_column("source images/s", justify="right")
    table.add_column("step, ms", justify="right")
    milliseconds = [
        f"{1e3 * seconds:,.1f}" for seconds in (speeds.step_alone, speeds.step_beside, speeds.step)
    ]
    table.add_row("loader alone", f"{speeds.loader:,.0f}", "")
    table.add_row("step alone, on a canned batch", f"{speeds.model:,.0f}", milliseconds[0])
    table.add_row("step beside a loader in another process", "", milliseconds[1])
    table.add_row("both together, in one process", f"{speeds.together:,.0f}", milliseconds[2])
    table.add_row("", "", "")
    table.add_row(
        "the loader slows the training thread by",
        "",
        f"{speeds.interference:+.1%}",
    )
    table.caption = (
        f"on top of the cores that it takes (one process against two); ± {speeds.uncertainty:.1%}, "
        f"of {len(speeds.slowdowns)} rounds"
    )
    if speeds.uncertainty > NOISY:
        table.caption += ": too noisy to say, take more --rounds on a machine that does nothing else"
    return table
