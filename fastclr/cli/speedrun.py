"""`fastclr speedrun RUNG …`: run a rung and write a record; `list`, `table` and `verify` of the records."""

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from benchmarks.speedruns import FOLDER
from fastclr.arguments import parse
from pipelines.system.terminal import printable

STYLE = (tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff)
USAGE = """usage: fastclr speedrun RUNG --train A.beton --test B.beton [options]   run a rung, write a record
       fastclr speedrun RUNG --train A.beton --dry-run                 what it would take, without training
       fastclr speedrun list                                           the rungs and who holds them
       fastclr speedrun verify DIR --train A.beton --test B.beton      run a record again
       fastclr speedrun table [--check]                                write the tables of the ladder

`fastclr speedrun RUNG --help` lists the options; the rules are in benchmarks/speedruns/README.md."""


@dataclass(frozen=True)
class Arguments:
    """Run a rung of the ladder of speedruns, and write a record if it keeps the rules.

    The labels of the training file are struck out before the training sees them. Finished seeds are kept: the same
    command continues a run that was interrupted.
    """

    rung: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUNG")]
    """A rung of `fastclr speedrun list`."""
    train: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="A.beton")]
    """The training images: a file, or the files of a set."""
    test: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="B.beton")] = ()
    """The test images, likewise."""
    recipe: str | None = None
    """Name of a recipe, or path of a TOML file; None: the rung's."""
    seeds: int | None = None
    """Number of seeds, from 0; None: as many as the rung needs. Fewer make no record."""
    name: str | None = None
    """Name of the record; None: that of the recipe."""
    against: Annotated[Path | None, tyro.conf.arg(metavar="RECORD")] = None
    """Folder of the previous record, which is run again in turn with this one."""
    fit: bool = False
    """Time some steps first, and fit train.epochs to the rung's budget."""
    reserve: float = 0.04
    """Fraction of the budget that --fit keeps back; a seed above the budget is refused."""
    source: tuple[str, ...] = ()
    """What the training file was converted from, as `fastclr convert` takes it; converted once more, on the clock."""
    division: Literal["simclr", "open"] = "simclr"
    """simclr: two views, the paper's losses, the rung's encoder; open: any method without labels."""
    about: str = ""
    """What changed and why, for the record's page."""
    tried: int = 1
    """Number of configurations that were tried until this one."""
    parallel: int = 2
    """Seeds side by side on a CPU."""
    work: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Folder of runs and logs; None: runs/speedrun/RUNG/NAME."""
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")] = FOLDER
    """Folder of rungs.toml, where the record goes to RUNG/DATE_NAME."""
    dry_run: bool = False
    """Only show shapes, steps, PFLOP, memory, and the loader's rate beside what a step needs."""

    def __post_init__(self) -> None:
        for name in ("seeds", "tried", "parallel"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name} is {value}; it must be at least 1")
        if not 0 <= self.reserve < 1:
            raise ValueError(f"--reserve is {self.reserve}; it must be 0 to 1, less than 1")
        if self.name is not None and not all(c.isalnum() or c in "-_." for c in self.name):
            raise ValueError(
                f"--name is {printable(self.name, 80)!r}; it may have letters, digits, - _ and ."
            )
        if not self.dry_run and not self.test:
            raise ValueError("--test is missing: the encoders are evaluated on B.beton after the training")


@dataclass(frozen=True)
class VerifyArguments:
    """Run seeds of a record again, and say whether it holds; the result is written to DIR/verified."""

    record: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DIR")]
    """Folder of the record."""
    train: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="A.beton")]
    """The training images."""
    test: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="B.beton")]
    """The test images."""
    seeds: int = 1
    """Number of seeds."""
    parallel: int = 2
    """Seeds side by side on a CPU."""
    work: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Folder of runs and logs; None: runs/speedrun/RUNG/verify-NAME."""


@dataclass(frozen=True)
class TableArguments:
    """Write the tables of benchmarks/speedruns/README.md from the records."""

    check: bool = False
    """Only report whether they are outdated; the exit code is then 1."""
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")] = FOLDER
    """Folder of rungs.toml, README.md and the records."""


def main(argv: list[str]) -> int:
    """Run a rung, or what the first argument names."""
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if argv else 2
    if argv[0] == "list":
        from fastclr.speedrun.tables import listing

        print(listing(FOLDER))
        return 0
    if argv[0] == "table":
        return _table(parse(TableArguments, argv[1:], "fastclr speedrun table", config=STYLE))
    if argv[0] == "verify":
        return _verify(parse(VerifyArguments, argv[1:], "fastclr speedrun verify", config=STYLE))
    return _run(parse(Arguments, argv, "fastclr speedrun", config=STYLE))


def _say(text: str) -> None:
    print(printable(text, 5000), flush=True)


def _command() -> str:
    return shlex.join(["fastclr", *sys.argv[1:]])


def _run(arguments: Arguments) -> int:
    from fastclr.recipes import load_recipe
    from fastclr.speedrun.rungs import find_rung, load_rungs

    rung = find_rung(load_rungs(arguments.out / "rungs.toml"), arguments.rung)
    named = arguments.recipe or rung.recipe
    recipe, train = load_recipe(named), [str(file) for file in arguments.train]
    if arguments.dry_run:
        from fastclr.speedrun.dry_run import dry_run

        for line in dry_run(rung, recipe, train).splitlines():
            _say(line)
        return 0
    from fastclr.speedrun.publish import outcome_line, publish, write_record
    from fastclr.speedrun.run import Speedrun, run_seeds

    name = arguments.name or Path(named).stem
    work = arguments.work or Path("runs") / "speedrun" / rung.id / name
    held = sorted((arguments.out / rung.id).glob(f"????-??-??_{name}"))
    if held:
        raise FileExistsError(f"{held[0]} is a record of this name; choose another --name")
    run = Speedrun(
        rung=rung,
        recipe=recipe,
        train=train,
        test=[str(file) for file in arguments.test],
        seeds=arguments.seeds or rung.seeds,
        name=name,
        work=work,
        division=arguments.division,
        against=arguments.against,
        fit=arguments.fit,
        reserve=arguments.reserve,
        source=list(arguments.source) or None,
        parallel=arguments.parallel,
        command=_command(),
    )
    logs, again = run_seeds(run, _say)
    folder = work / "record"
    summary = write_record(
        folder,
        arguments.out,
        rung,
        logs,
        again,
        about=arguments.about,
        configurations_tried=arguments.tried,
    )
    _say(outcome_line(rung, summary))
    if len(logs) < rung.seeds:
        _say(f"no record: {len(logs)} of {rung.seeds} seeds; the same command with more --seeds continues")
        return 0
    place = publish(folder, arguments.out, rung)
    _say(f"record: {place}; next: fastclr speedrun table")
    return 0


def _verify(arguments: VerifyArguments) -> int:
    from fastclr.speedrun.verify import verify

    holds = verify(
        arguments.record,
        [str(file) for file in arguments.train],
        [str(file) for file in arguments.test],
        seeds=arguments.seeds,
        parallel=arguments.parallel,
        work=arguments.work,
        command=_command(),
        note=_say,
    )
    return 0 if holds else 1


def _table(arguments: TableArguments) -> int:
    from fastclr.speedrun.tables import fill_page

    page = arguments.out / "README.md"
    old = page.read_text(encoding="utf-8")
    new = fill_page(old, arguments.out)
    if arguments.check:
        if old != new:
            _say(f"{page} is not what the records give; run fastclr speedrun table")
        return int(old != new)
    page.write_text(new, encoding="utf-8")
    _say(f"written: {page}")
    return 0
