"""What a rung would take, without training: shapes, steps, PFLOP, memory, and the loader's rate beside the step's.

A rate that a GPU needs is an estimate, from the operations of a step and an assumed speed; it is marked "predicted".
"""

import time
from dataclasses import replace

import torch

from fastclr.config import Config
from fastclr.model import SimCLR
from fastclr.optim import num_steps, num_warmup_steps
from fastclr.speedrun.flop import StageFlop, run_pflop, stage_flop
from fastclr.speedrun.rungs import Rung
from fastclr.speedrun.tables import with_stem
from fastclr.train.build import BATCHES, COPIES, activation_bytes, check_views, make_model, peak_lr
from pipelines import BetonReader, ViewLoader
from pipelines.system.cpus import cores

ASSUMED_FLOPS = {"cpu": 0.1e12, "gpu": 250e12}
"""Operations per second that are assumed: one core with AVX-512 and bfloat16; an H100 in bfloat16."""
LOADER_BATCH, LOADER_SECONDS = 64, 3.0
"""Images of a batch, and minimum seconds, of the loader's measurement."""


def dry_run(rung: Rung, recipe: Config, files: list[str], seconds: float = LOADER_SECONDS) -> str:
    """Return a report of what a rung's recipe would take, a line per fact; any file of images will do.

    Args:
        rung: the rung.
        recipe: its recipe.
        files: a training set; the rung's own has `rung.train_samples` images.
        seconds: minimum time for which the loader is measured at each size.

    Raises:
        ValueError: a recipe that `fastclr train` refuses.
    """
    check_views(recipe)
    config = with_stem(recipe)
    batch, epochs, images = config.train.batch_size, config.train.epochs, rung.train_samples
    ranks = max(1, rung.gpus)
    if batch % ranks:
        raise ValueError(f"train.batch_size is {batch} and is shared by {ranks} GPUs; make it a multiple")
    warm_up = num_warmup_steps(images, config.optim.warmup_epochs, batch)
    peak = peak_lr(config)
    fixed = "" if rung.epochs is not None else " (predicted)"
    model = make_model(config.model, config.view_size)
    parameters = sum(p.numel() for p in model.encoder.parameters())
    lines = [
        f"{rung.id}: {rung.title} ({rung.machine}); recipe {rung.recipe}, not run",
        f"{images:,} images, {epochs} epochs{fixed}, {num_steps(images, epochs, batch):,} steps of {batch:,} images, "
        f"{warm_up:,} of them warm up to a rate of {peak:g}",
        f"{run_pflop(config, images):.3g} PFLOP; encoder of {parameters / 1e6:.2f} million parameters; tested at "
        f"{config.eval_size} px",
    ]
    with BetonReader(files) as reader:
        shorter = int(min(reader.heights.min(), reader.widths.min()))
        lines.append(f"{reader.path}: {len(reader):,} images, the smallest side has {shorter} px")
        for stage in stage_flop(config, images):
            lines += _stage_lines(rung, config, stage, model, reader, seconds)
    return "\n".join(lines)


def _stage_lines(
    rung: Rung, config: Config, stage: StageFlop, model: SimCLR, reader: BetonReader, seconds: float
) -> list[str]:
    """Return the lines of a stage: shapes, memory, and rates."""
    batch, ranks = config.train.batch_size, max(1, rung.gpus)
    own = batch // ranks
    views = 2 * own
    with torch.no_grad():
        h, z = model.eval()(torch.zeros(1, 3, stage.size, stage.size))
    per_gpu = " per GPU" if ranks > 1 else ""
    kept = activation_bytes(model, stage.size, bfloat16=config.train.precision != "float32")
    at_once = config.train.micro_batch or own
    weights = sum(p.nbytes for p in model.parameters())
    memory = 2 * at_once * kept + BATCHES * views * 3 * stage.size**2 * 4 + COPIES * weights
    assumed = ASSUMED_FLOPS["gpu" if rung.gpus else "cpu"]
    step_s = stage.flop / ranks / assumed
    needed = batch / step_s
    measured = loader_rate(config, stage.size, reader, seconds)
    return [
        f"at {stage.size} px, {stage.fraction:.0%} of the steps: views [2, {own}, 3, {stage.size}, {stage.size}]"
        f"{f' on each of {ranks} GPUs' if ranks > 1 else ''}, h [{views}, {h.shape[1]}], z [{views}, {z.shape[1]}]",
        f"  {stage.flop / 1e12:.3g} TFLOP a step; about {memory / 2**30:.2g} GiB of memory{per_gpu}",
        f"  a step takes {1000 * step_s:.3g} ms at {assumed / 1e12:g} TFLOP/s{per_gpu} "
        f"(predicted) and needs {needed:,.0f} images/s; the loader delivers "
        f"{measured:,.0f} images/s here, with {cores()} threads on this file (measured)",
    ]


def loader_rate(config: Config, size: int, reader: BetonReader, seconds: float) -> float:
    """Return source images per second of the native loader, augmentation included, on all cores of this machine."""
    specs = [replace(spec, size=size) for spec in config.view_specs]
    batch = min(LOADER_BATCH, len(reader))
    with ViewLoader(reader, batch, views=specs, engine="native", num_threads=cores()) as loader:
        # the first epoch compiles; a small file is read several times
        for _ in zip(loader, range(2), strict=False):
            pass
        images, start = 0, time.perf_counter()
        while True:
            for each in loader:
                images += len(each)
                if (elapsed := time.perf_counter() - start) >= seconds:
                    return images / elapsed
