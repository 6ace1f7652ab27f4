"""`fastclr finetune RUN [RECIPE] --train A.beton --test B.beton`: an encoder becomes a classifier."""

import json
import statistics
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import tyro

from fastclr.arguments import parse
from fastclr.finetune_config import FinetuneConfig
from fastclr.recipes import RECIPES_DIR, load_finetune_recipe, recipe_names
from pipelines.system.terminal import printable

DEFAULT_RECIPE = "finetune"
RESULT = "finetune.json"


@dataclass(frozen=True)
class Arguments:
    """Arguments of `fastclr finetune`."""

    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
    """Run folder of `fastclr train`, or another encoder: a file, torchvision:NAME or timm:NAME."""
    recipe: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RECIPE")]
    """Name of a recipe, or path of a TOML file or of a run folder of `fastclr finetune`."""
    train: Annotated[Path, tyro.conf.arg(metavar="A.beton")]
    """Labelled images to learn from: a file or a set."""
    test: Annotated[Path, tyro.conf.arg(metavar="B.beton")]
    """Labelled images to be tested on: a file or a set."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="OUT_DIR")] = None
    """The folder of this run; None: RUN/RECIPE, or runs/RECIPE if RUN is a file.  A run in it is continued."""
    list: Annotated[Path | None, tyro.conf.arg(metavar="names.txt")] = None
    """Names of the images to learn from, one a line, in place of the recipe's fraction."""
    seeds: int = 1
    """Runs with train.seed and finetune.subset_seed 0, 1, … added to those of the recipe; mean and deviation."""
    fresh: tyro.conf.FlagCreatePairsOff[bool] = False
    """Stop with an error if the folder holds a run, instead of continuing it."""
    config: Annotated[FinetuneConfig, tyro.conf.arg(name=""), tyro.conf.AvoidSubcommands] = field(
        default_factory=FinetuneConfig
    )


def main(argv: list[str]) -> int:
    """Fine-tune, print the accuracies, and return the exit code: 0, or 128 + n if signal n stopped a run."""
    argv = _with_short_names(_with_recipe(argv))
    asks_help = bool({"-h", "--help"} & set(argv))
    config = FinetuneConfig() if asks_help or len(argv) < 2 else load_finetune_recipe(argv[1])
    missing = tyro.MISSING
    default = Arguments(missing, missing, missing, missing, config=config)
    arguments = parse(Arguments, argv, "fastclr finetune", default=default, description=_description())
    if arguments.seeds < 1:
        raise ValueError(f"--seeds is {arguments.seeds}; it must be at least 1")
    # the fraction of a recipe is replaced by a list
    if arguments.list is not None and any(word.partition("=")[0] == "--finetune.fraction" for word in argv):
        raise ValueError(
            "--list and --fraction both choose the images that are learnt from; give one of them"
        )
    folder = arguments.out or _run_folder(arguments.run) / Path(arguments.recipe).stem
    results = []
    for number in range(arguments.seeds):
        one = folder if arguments.seeds == 1 else folder / f"seed{number}"
        status, result = _finetune(arguments, _reseeded(arguments.config, number), one)
        if status:
            return status
        if result:
            results.append(result)
    if len(results) > 1:
        _write(folder / RESULT, {"seeds": results, **_summary(results)})
        print(_summary_line(results))
    return 0


def _finetune(
    arguments: Arguments, config: FinetuneConfig, folder: Path
) -> tuple[int, dict[str, Any] | None]:
    """Do one run; return its exit code and, on rank 0, its result."""
    from torch.distributed.elastic.multiprocessing.errors import record

    from fastclr.train.distributed import ranks_from_env
    from fastclr.train.finetune import finetune

    ranks = ranks_from_env()
    run = record(finetune) if ranks.world_size > 1 else finetune
    done = run(
        config,
        arguments.run,
        arguments.train,
        arguments.test,
        folder,
        names=arguments.list,
        fresh=arguments.fresh,
    )
    assert done is not None
    outcome, report = done
    status = 0 if outcome.stopped_by is None else 128 + outcome.stopped_by
    if not ranks.is_main:
        return status, None
    if outcome.stopped_by is not None:
        print(
            f"stopped by {outcome.stopped_by.name} at step {outcome.step} of {outcome.total_steps}; the same command "
            "continues"
        )
        return status, None
    _write(folder / RESULT, {**report, "date": time.strftime("%Y-%m-%dT%H:%M:%S%z")})
    images, classes = report["images"], report["num_classes"]
    top5 = f", top-5 {report['test_top5']:.2%}" if classes > 5 else ""
    print(
        f"top-1 {report['test_top1']:.2%}{top5} on {report['test_images']:,} test images; learnt from {images:,} "
        f"images of {classes} classes; written to {printable(folder)}"
    )
    return 0, report


def _write(path: Path, result: dict[str, Any]) -> None:
    from fastclr.train.checkpoint import atomic_write

    with atomic_write(path) as file:
        file.write((json.dumps(result, indent=2) + "\n").encode())


def _reseeded(config: FinetuneConfig, number: int) -> FinetuneConfig:
    """Return the config of one of several seeds: another subset, order and initial classifier."""
    return replace(
        config,
        train=replace(config.train, seed=config.train.seed + number),
        finetune=replace(config.finetune, subset_seed=config.finetune.subset_seed + number),
    )


def _summary(results: list[dict[str, Any]]) -> dict[str, float]:
    top1 = [result["test_top1"] for result in results]
    return {"test_top1_mean": statistics.mean(top1), "test_top1_std": statistics.stdev(top1)}


def _summary_line(results: list[dict[str, Any]]) -> str:
    found = _summary(results)
    return f"top-1 {found['test_top1_mean']:.2%} ± {found['test_top1_std']:.2%} ({len(results)} seeds)"


def _run_folder(run: str) -> Path:
    return Path(run) if Path(run).is_dir() else Path("runs")


def _with_recipe(argv: list[str]) -> list[str]:
    """Return the arguments with the default recipe behind RUN if none is given."""
    if argv and not argv[0].startswith("-") and (len(argv) == 1 or argv[1].startswith("-")):
        return [argv[0], DEFAULT_RECIPE, *argv[1:]]
    return argv


def _with_short_names(argv: list[str]) -> list[str]:
    """Return the arguments with --fraction and --from-layer under their full names."""
    short = {"--fraction": "--finetune.fraction", "--from-layer": "--finetune.from-layer"}
    found = []
    for word in argv:
        name, equals, value = word.partition("=")
        found.append(short.get(name, name) + equals + value)
    return found


def _description() -> str:
    lines = [
        "Fine-tune an encoder on labels, all or a fraction of them; `--section.key value` overrides the recipe, and",
        "--fraction and --from-layer are short for --finetune.fraction and --finetune.from-layer.",
        "",
        "Recipes:",
    ]
    for name in recipe_names(FinetuneConfig):
        first = (RECIPES_DIR / "finetune" / f"{name}.toml").read_text("utf-8").splitlines()[0]
        lines.append(f"  {name:<22} {first.removeprefix('# ')}")
    return "\n".join(lines)
