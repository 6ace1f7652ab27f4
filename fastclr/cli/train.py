"""`fastclr train RECIPE --train FILE`: pre-train an encoder by a recipe, on one device or under torchrun."""

import shlex
from pathlib import Path
from typing import Annotated

import tyro

from fastclr.arguments import call
from fastclr.config import Config
from fastclr.recipes import FOLDER, recipe_names, recipe_of, run_folder_of


def main(argv: list[str]) -> int:
    """Exit codes: 0 the run is complete; 130 (Ctrl-C) or 143 (SIGTERM) it was stopped and can be resumed."""
    recipe = recipe_of(argv, "fastclr train")

    def train(
        name: Annotated[
            tyro.conf.Positional[str],
            tyro.conf.arg(
                metavar="RECIPE", help="Name of a recipe, or path of a TOML file or of a run folder."
            ),
        ],
        train: Annotated[
            Path, tyro.conf.arg(metavar="FILE.beton", help="Images; `fastclr convert` makes the file.")
        ],
        out: Annotated[
            Path | None,
            tyro.conf.arg(
                metavar="RUN_DIR", help="The run folder; None: runs/RECIPE, or the RECIPE that is one."
            ),
        ] = None,
        resume: Annotated[
            tyro.conf.FlagCreatePairsOff[bool],
            tyro.conf.arg(help="Continue the run in the run folder, exactly where it was stopped."),
        ] = False,
        config: Annotated[Config, tyro.conf.arg(name="")] = recipe,
    ) -> int:
        return _train(config, train, out or run_folder_of(name), resume)

    return call(train, argv, "fastclr train", description=_description())


def _train(config: Config, file: Path, folder: Path, resume: bool) -> int:
    from torch.distributed.elastic.multiprocessing.errors import record

    from fastclr.train.distributed import ranks_from_env
    from fastclr.train.loop import train

    ranks = ranks_from_env()
    # recorded: torchrun then shows the error of the rank that failed first
    run = record(train) if ranks.world_size > 1 else train
    outcome = run(config, file, folder, resume=resume)
    assert outcome is not None
    if not ranks.is_main:
        return 0 if outcome.stopped_by is None else 128 + outcome.stopped_by
    where = f"step {outcome.step} of {outcome.total_steps}"
    if outcome.stopped_by is not None:
        print(f"stopped by {outcome.stopped_by.name} at {where}; continue with: {resuming(folder, file)}")
        return 128 + outcome.stopped_by
    print(
        f"done: {where}, {outcome.images_per_s:,.0f} images/s, {outcome.data_wait:.1%} waiting for data; "
        f"next: fastclr evaluate {folder} --train {file} --test FILE.beton"
    )
    return 0


def resuming(folder: Path, file: Path) -> str:
    """The command that continues the run in this folder."""
    recipe = (
        f"./{folder}" if f"{folder}" in recipe_names() else f"{folder}"
    )  # else it means the package's own
    return shlex.join(["fastclr", "train", recipe, "--train", f"{file}", "--resume"])


def _description() -> str:
    lines = [
        "SimCLR pre-training by a recipe; `--section.key value` overrides one of its settings.",
        "On several devices: torchrun --nproc-per-node gpu --no-python fastclr train RECIPE …",
        "",
        "Recipes:",
    ]
    for name in recipe_names():
        first = (FOLDER / f"{name}.toml").read_text("utf-8").splitlines()[0]
        lines.append(f"  {name:<26} {first.removeprefix('# ')}")
    return "\n".join(lines)
