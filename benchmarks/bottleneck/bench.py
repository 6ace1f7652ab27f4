"""`fastclr bench bottleneck`: whether the loader or the model limits a training run, and what to change."""

import warnings
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, ClassVar

import tyro
from rich.console import Console
from rich.table import Table

from benchmarks.bottleneck.measure import measure_run
from benchmarks.bottleneck.recommend import RunSetup, Throughputs, recommendations, setup_of_run
from benchmarks.core.machine import Machine, describe_machine
from benchmarks.core.report import check_at_least_1, check_out, save
from fastclr.arguments import DataSet, FieldNames, Fields, data_set, parse
from fastclr.config import Config
from fastclr.device import pick_device
from fastclr.recipes import recipe_from_arguments
from fastclr.renamed import current_arguments
from fastclr.train.build import resolve
from pipelines import BetonReader
from pipelines.system.terminal import printable

MAX_UNCERTAINTY = 0.03
"""Uncertainty of the loader's influence on a step above which the figure is meaningless."""


@dataclass(frozen=True)
class Options:
    """Measure the loader alone, the training step alone on a canned batch, and both together.

    On a CPU the loader and the training step have separate threads: --data.threads (default: 1) and --train.threads
    (default: the other cores, if there are more than two).
    """

    recipe: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RECIPE")]
    """Name of a recipe, or path of a TOML file."""
    files: DataSet
    """Images to train on; `fastclr convert` makes the file, or the files of a set."""
    rounds: int = 5
    """Rounds; everything is measured once in each."""
    steps: int = 5
    """Training steps that are timed in each round, alone and together."""
    interference: tyro.conf.FlagCreatePairsOff[bool] = False
    """For developers of the loader: also time the step beside a loader in another process. The difference is what
    the loader costs the training thread on top of the cores that it takes (the GIL, memory)."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE.json")] = None
    """Where to write the result."""
    fields: Fields = field(default_factory=FieldNames)
    config: Annotated[Config, tyro.conf.arg(name=""), tyro.conf.AvoidSubcommands] = field(
        default_factory=Config
    )

    def __post_init__(self) -> None:
        check_at_least_1(self, "rounds", "steps")
        check_out(self.out)


@dataclass(frozen=True, kw_only=True)
class BottleneckSettings(RunSetup):
    """The run's setup, and the length of the measurement."""

    rounds: int
    steps: int


@dataclass(frozen=True)
class BottleneckReport:
    """Result of the benchmark."""

    machine: Machine
    recipe: str
    file: str
    settings: BottleneckSettings
    results: Throughputs
    advice: list[str]
    """Recommended changes, the most promising first."""
    benchmark: str = "bottleneck"
    derived: ClassVar[tuple[str, ...]] = ("limits", "factor", "interference", "uncertainty")

    @property
    def limits(self) -> str:
        return self.results.limits

    @property
    def factor(self) -> float:
        return self.results.factor

    @property
    def interference(self) -> float | None:
        return self.results.interference

    @property
    def uncertainty(self) -> float | None:
        return self.results.uncertainty


def main(argv: list[str]) -> None:
    """Run the command."""
    argv = current_arguments(_without_old_option(argv))
    options = parse(Options, argv, "fastclr bench bottleneck", default=_defaults(argv))
    # a schedule's sizes take turns; measured is the largest, that of [views]
    console, config = Console(), replace(options.config.with_fields(*options.fields), schedule=())
    device = pick_device(config.train.device, option="--train.device")
    with BetonReader(data_set(options.files), *config.field_names) as reader, console.status("measuring"):
        config = resolve(config, reader, device)
        setup = setup_of_run(config, reader)
        speeds = measure_run(config, reader, device, options.rounds, options.steps, options.interference)
    settings = BottleneckSettings(**asdict(setup), rounds=options.rounds, steps=options.steps)
    advice = recommendations(setup, speeds)
    report = BottleneckReport(describe_machine(), options.recipe, reader.path.name, settings, speeds, advice)
    console.print(bottleneck_table(report))
    console.print(
        f"The {report.limits} limits: the other is {report.factor:.1f} times as fast.", style="bold"
    )
    for line in advice:
        console.print(f"  • {line}", markup=False, soft_wrap=True)
    if options.out is not None:
        save(options.out, report)
        console.print(f"wrote {options.out}", markup=False)


def _defaults(argv: list[str]) -> Options:
    """Return the options' defaults: those of the recipe that is named first."""
    config = recipe_from_arguments(argv, "fastclr bench bottleneck")
    missing = tyro.MISSING_NONPROP
    return Options(missing, missing, config=config)


def _without_old_option(argv: list[str]) -> list[str]:
    """Return the arguments with the old `--train FILE` as the positional FILE that it is now."""
    argv = [part for word in argv for part in (word.split("=", 1) if word.startswith("--train=") else [word])]
    if "--train" not in argv:
        return argv
    warnings.warn(
        "`--train FILE.beton` is now just FILE.beton, behind the recipe", FutureWarning, stacklevel=2
    )
    place = argv.index("--train")
    return [*argv[:1], *argv[place + 1 : place + 2], *argv[1:place], *argv[place + 2 :]]


def bottleneck_table(report: BottleneckReport) -> Table:
    """Return the throughputs as a table."""
    setup, speeds = report.settings, report.results
    table = Table(
        title=f"{printable(report.recipe)} on {setup.device}: engine {setup.engine}, {setup.loader_threads} loader "
        f"threads, {setup.train_threads} training threads, batches of {setup.batch_size}",
        title_justify="left",
        box=None,
    )
    table.add_column("")
    table.add_column("source images/s", justify="right")
    table.add_column("step, ms", justify="right")
    table.add_row("loader alone", f"{speeds.loader:,.0f}", "")
    table.add_row("step alone, on a canned batch", f"{speeds.model:,.0f}", f"{1e3 * speeds.step_alone:,.1f}")
    table.add_row("both together, in one process", f"{speeds.together:,.0f}", f"{1e3 * speeds.step:,.1f}")
    if speeds.step_beside is None or speeds.interference is None or speeds.uncertainty is None:
        return table
    table.add_row("step beside a loader in another process", "", f"{1e3 * speeds.step_beside:,.1f}")
    table.add_row("", "", "")
    table.add_row("the loader slows the training thread by", "", f"{speeds.interference:+.1%}")
    table.caption = (
        f"on top of the cores that it takes (one process against two); ± {speeds.uncertainty:.1%}, "
        f"of {len(speeds.slowdowns)} rounds"
    )
    if speeds.uncertainty > MAX_UNCERTAINTY:
        table.caption += ": too noisy to say, take more --rounds on a machine that does nothing else"
    return table
