"""The processes of a seed: `python -m fastclr.speedrun.worker JOB.json`; each reads a job and writes its result.

train      trains the encoder of a seed; the parent counts the process's CPU time, or this one the time on a GPU
evaluate   measures the encoder, outside the clock
time       measures the CPU seconds of a step, for `--fit`
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from fastclr.speedrun.processes import end_with_parent


@dataclass(frozen=True)
class Job:
    """The work of a process; paths are absolute."""

    kind: Literal["train", "evaluate", "time"]
    recipe: str
    """A complete recipe."""
    seed: int
    train: list[str]
    """Files of the training set."""
    test: list[str]
    """Files of the test set; a training process gets none."""
    run: str
    """The run folder."""
    result: str
    """File that the result is written to."""
    warm_up: bool = False
    """Take untimed steps on random pixels first."""
    metric: str = "knn"
    """The accuracy that decides: knn, or linear."""
    timing_s: float = 1.0
    """Minimum CPU seconds of the steps that are timed."""

    def write(self, path: Path) -> Path:
        """Write the job to a file; return its path."""
        path.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")
        return path


def main(path: str) -> int:
    """Do the work of a job's file; return the exit code, 128 + n if signal n stopped it."""
    end_with_parent()
    job = Job(**json.loads(Path(path).read_text(encoding="utf-8")))
    kinds: dict[str, Callable[[Job], dict[str, Any] | int]] = {
        "train": train_job,
        "evaluate": evaluate_job,
        "time": time_job,
    }
    result = kinds[job.kind](job)
    if isinstance(result, int):
        return result
    if result:
        temporary = Path(f"{job.result}.partial")
        temporary.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        temporary.replace(job.result)
    return 0


def train_job(job: Job) -> dict[str, Any] | int:
    """Train an encoder on the images without their labels."""
    import torch

    from fastclr.recipes import load_recipe
    from fastclr.speedrun.stages import stages
    from fastclr.speedrun.unlabelled import UnlabelledReader, check_unlabelled, num_labels
    from fastclr.speedrun.warm_up import warm_up
    from fastclr.train.distributed import ranks_from_env
    from fastclr.train.pretrain import Pretraining, train

    config = load_recipe(job.recipe)
    config = replace(config, train=replace(config.train, seed=job.seed))
    began = start = time.perf_counter()
    parameters = 0

    def before_the_first_image(task: Pretraining) -> None:
        nonlocal start, parameters
        parameters = sum(p.numel() for p in task.model.encoder.parameters())
        if job.warm_up:
            sizes = [stage.size for stage in stages(config, task.num_images)]
            # a captured step keeps the graph of the last size: that of the first one comes last
            warm_up(task, [*sizes[1:], sizes[0]])
            start = time.perf_counter()

    with UnlabelledReader(job.train) as reader:
        check_unlabelled(reader)
        outcome = train(config, reader, Path(job.run), fresh=True, warm_up=before_the_first_image)
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        end = time.perf_counter()
        if outcome.stopped_by is not None:
            return 128 + outcome.stopped_by
        if not ranks_from_env().is_main:
            return {}
        return {
            "seed": job.seed,
            "steps": outcome.step,
            "labels_seen": num_labels(reader),
            "parameters": parameters,
            "training_s": end - start,
            "warm_up_s": start - began if job.warm_up else 0.0,
        }


def evaluate_job(job: Job) -> dict[str, Any]:
    """Measure the encoder of a run folder: one plain forward pass per image, at the recipe's test size."""
    from fastclr.recipes import load_recipe
    from fastclr.speedrun.evaluation import evaluate

    config = load_recipe(job.recipe)
    return {"seed": job.seed, **evaluate(config, Path(job.run), job.train, job.test, job.metric)}


def time_job(job: Job) -> dict[str, Any]:
    """Measure the CPU seconds of a step, and those before the first one."""
    from fastclr.recipes import load_recipe
    from fastclr.speedrun.fit import time_steps
    from fastclr.speedrun.unlabelled import UnlabelledReader

    config = load_recipe(job.recipe)
    with UnlabelledReader(job.train) as reader:
        return asdict(time_steps(config, reader, job.timing_s))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
