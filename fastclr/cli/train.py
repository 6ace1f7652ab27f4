"""`fastclr train RECIPE FILE.beton`: pre-train an encoder by a recipe, on one device or under torchrun."""

import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from fastclr.arguments import DataSet, FieldNames, Fields, data_set, parse
from fastclr.config import Config
from fastclr.recipes import RECIPES_DIR, default_run_folder, recipe_from_arguments, recipe_names
from fastclr.renamed import current_arguments
from pipelines.system.terminal import printable


@dataclass(frozen=True)
class Arguments:
    """Arguments of `fastclr train`."""

    recipe: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RECIPE")]
    """Name of a recipe, or path of a TOML file or of a run folder."""
    files: DataSet
    """Images to train on: a .beton file, which `fastclr convert` makes; or a set of several: their names, a pattern in
    quotes, a folder, or the set's index."""
    val: Annotated[Path | None, tyro.conf.arg(metavar="VAL.beton")] = None
    """Held-out images with labels, a .beton file or a set: their kNN accuracy is logged every train.eval_epochs
    epochs."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="RUN_DIR")] = None
    """The run folder; None: runs/RECIPE, or RECIPE itself if it is a run folder. A run that it holds is continued."""
    fresh: tyro.conf.FlagCreatePairsOff[bool] = False
    """Stop with an error if the run folder holds a run, instead of continuing it."""
    resume: tyro.conf.FlagCreatePairsOff[bool] = False
    """Not needed any more; stops with an error if the run folder holds no run."""
    fields: Fields = field(default_factory=FieldNames)
    config: Annotated[Config, tyro.conf.arg(name=""), tyro.conf.AvoidSubcommands] = field(
        default_factory=Config
    )

    @property
    def file(self) -> Path | tuple[Path, ...]:
        return data_set(self.files)


def main(argv: list[str]) -> int:
    """Train, and return the exit code: 0 if the run is complete, 128 + n if signal n stopped it (Ctrl-C: 130)."""
    argv = current_arguments(_with_file(argv))
    default = Arguments(tyro.MISSING, tyro.MISSING, config=recipe_from_arguments(argv, "fastclr train"))
    arguments = parse(Arguments, argv, "fastclr train", default=default, description=_description())
    if arguments.resume:
        _say("--resume is not needed any more: a run is continued by the command that started it")
    return _train(arguments)


def _with_file(argv: list[str]) -> list[str]:
    """Return the arguments with the file as fastclr 0.1 took it, `RECIPE --train FILE`, turned into `RECIPE FILE`."""
    for i, word in enumerate(argv):
        name, equals, value = word.partition("=")
        if name == "--train" and (equals or i + 1 < len(argv)):
            _say("--train FILE is now the second argument: fastclr train RECIPE FILE.beton")
            rest = argv[i + 1 :] if equals else argv[i + 2 :]
            return [*argv[:1], value if equals else argv[i + 1], *argv[1:i], *rest]
    return argv


def _say(text: str) -> None:
    print(f"fastclr train: {text}", file=sys.stderr)


def _train(arguments: Arguments) -> int:
    from torch.distributed.elastic.multiprocessing.errors import record

    from fastclr.train.distributed import ranks_from_env
    from fastclr.train.pretrain import train

    file, folder = arguments.file, arguments.out or default_run_folder(arguments.recipe)
    ranks = ranks_from_env()
    # `record` lets torchrun show the error of the rank that failed first
    run = record(train) if ranks.world_size > 1 else train
    outcome = run(
        arguments.config.with_fields(*arguments.fields),
        file,
        folder,
        val=arguments.val,
        fresh=arguments.fresh,
        resume=arguments.resume,
    )
    assert outcome is not None
    status = 0 if outcome.stopped_by is None else 128 + outcome.stopped_by
    if not ranks.is_main:
        return status
    where = f"step {outcome.step} of {outcome.total_steps}"
    test = arguments.val or "FILE.beton"
    # an option takes one word
    trained = file if isinstance(file, Path) else "FILES"
    evaluate = f"next: fastclr evaluate {folder} --train {trained} --test {test}"
    if outcome.stopped_by is not None:
        command = resuming(folder, file, arguments.val)
        text = f"stopped by {outcome.stopped_by.name} at {where}; continue with: {command}"
    elif outcome.first_step == outcome.total_steps:
        text = f"{folder} holds this run, which is complete: {where}; choose another --out for a new run; {evaluate}"
    else:
        speed = f"{outcome.images_per_s:,.0f} images/s, {outcome.data_wait:.1%} waiting for data"
        text = f"done: {where}, {speed}; {evaluate}"
    print(printable(text, 5000))
    return status


def resuming(folder: Path, file: Path | tuple[Path, ...], val: Path | None = None) -> str:
    """Return the command that continues the run in this folder."""
    # "./demo", not "demo": a bare name means the recipe of the package
    recipe = f"./{folder}" if f"{folder}" in recipe_names() else f"{folder}"
    held_out = [] if val is None else ["--val", f"{val}"]
    files = [file] if isinstance(file, Path) else file
    return shlex.join(["fastclr", "train", recipe, *map(str, files), *held_out])


def _description() -> str:
    lines = [
        "SimCLR pre-training by a recipe; `--section.key value` overrides one of its settings.",
        "On several devices: torchrun --nproc-per-node gpu --no-python fastclr train RECIPE …",
        "",
        "Recipes:",
    ]
    for name in recipe_names():
        first = (RECIPES_DIR / f"{name}.toml").read_text("utf-8").splitlines()[0]
        lines.append(f"  {name:<26} {first.removeprefix('# ')}")
    return "\n".join(lines)
