"""`fastclr bench step`: one training step of SimCLR, in its pieces and as a whole.

    data wait ─▶ augment ─▶ encoder and head, forward + backward ─▶ loss, forward + backward ─▶ optimizer

The step on canned views and the step that a loader feeds take turns, then the pieces do.  Data wait is the time
that the device stands still until its views are there; what a loader costs beyond that (it shares processors and
memory with the step) shows in how much slower the fed step is.  Under `torchrun` every rank runs the step on its
share of the batch: the step with global batch norm against the same with local batch norm is the time of the norms'
synchronisation.
"""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Literal

import torch
import tyro
from rich.console import Console

from benchmarks.core.report import check_at_least_1
from benchmarks.kernels.options import CommonOptions
from benchmarks.kernels.report import (
    Column,
    KernelGroup,
    KernelReport,
    new_report,
    print_group,
    print_targets,
    with_floor,
    with_group,
)
from benchmarks.kernels.roofline import augment_floor_s, flops_floor_s, lars_floor_s, nt_xent_floor_s
from benchmarks.kernels.step_parts import PROJ_DIM, FedStep, Shape, Step, check_capture, flops_per_image
from benchmarks.kernels.timing import Function, KernelRow, Variant, measure
from fastclr.arguments import parse
from fastclr.device import pick_device
from fastclr.train.distributed import Ranks, process_group, ranks_from_env
from pipelines.engines import EngineName

COLUMNS: tuple[Column, ...] = (
    ("images/s", "images_per_s", "count"),
    ("of step", "step_share", "share"),
    ("MiB", "peak_bytes", "bytes"),
    ("of floor", "floor_share", "share"),
)
CANNED, GRAPH, LOCAL, LOADED = "step", "step, graph", "step, local norms", "step with loader"
GPU_SHAPES = (Shape("resnet50-224", 50, 1.0, 224, 256), Shape("resnet18-32", 18, 1.0, 32, 512))
CPU_SHAPES = (Shape("resnet50-224", 50, 0.25, 64, 2), Shape("resnet18-32", 18, 0.25, 32, 8))
"""The same encoders, narrower, on smaller batches and views."""


@dataclass(frozen=True, kw_only=True)
class Options(CommonOptions):
    """One training step of SimCLR, in its pieces and as a whole."""

    only: tuple[Literal["resnet50-224", "resnet18-32"], ...] = ("resnet50-224", "resnet18-32")
    """Encoder and size of the views."""
    batch_size: int | None = None
    """Source images of a step on each rank; None: 256 and 512 on a GPU, 2 and 8 on a CPU."""
    size: int | None = None
    """Height and width of a view, pixels; None: 224 and 32, on a CPU 64 and 32."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of convolutions and matrix products; auto: bfloat16 on a GPU."""
    compile: tyro.conf.FlagCreatePairsOff[bool] = False
    """Compile encoder and head with torch.compile."""
    channels_last: bool = True
    """Memory format of weights and views."""
    file: Path | None = None
    """A .beton file for the step with a loader; None: drawn images, held decoded."""
    engine: Literal["auto", EngineName] = "auto"
    """Engine of the loader; auto: native for a file, resident for drawn images."""
    threads: int | None = None
    """Threads of the loader; None: one per core."""
    calls: int | None = None
    """Steps of a turn; None: 20 on a GPU, 3 on a CPU."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least_1(self, "calls", "size", "threads")
        if self.batch_size is not None and self.batch_size < 2:
            raise ValueError(
                f"--batch-size is {self.batch_size}; negatives come from the batch, it must be at least 2"
            )
        if self.file is not None and not self.file.is_file():
            raise FileNotFoundError(f"--file {self.file}: no such file")


def main(argv: list[str]) -> None:
    run(parse(Options, argv, "fastclr bench step"))


def run(options: Options) -> KernelReport:
    """Measure, print on rank 0, and return the report.

    Raises:
        ValueError, OSError: an option that does not fit; the message says which.
    """
    ranks = ranks_from_env()
    device = pick_device(options.device, ranks.local_rank, ranks.local_world_size)
    on_gpu = device.type == "cuda"
    console = Console(quiet=not ranks.is_main)
    bfloat16 = options.precision == "bfloat16" or (options.precision == "auto" and on_gpu)
    dtype = torch.bfloat16 if bfloat16 else torch.float32
    settings = {
        **asdict(options),
        "precision": str(dtype).removeprefix("torch."),
        "world_size": ranks.world_size,
    }
    settings |= {"file": options.file and options.file.name, "out": None, "device": str(device)}
    report = new_report("step", settings)
    with process_group(ranks, device), _cudnn_search():
        for shape in GPU_SHAPES if on_gpu else CPU_SHAPES:
            if shape.name not in options.only:
                continue
            shape = shape.changed(options.batch_size, options.size)
            rows = _measure_shape(options, shape, dtype, ranks, device)
            shares = _shares(rows, ranks)
            title = f"{shape.title()}, {settings['precision']}, {ranks.world_size} rank(s)"
            group = KernelGroup(title, rows, shape=asdict(shape), shares=shares)
            report = with_group(report, options.out if ranks.is_main else None, group)
            print_group(console, group, COLUMNS)
            found = [
                f"{name} {'not measured' if share is None else f'{share:.1%}'}"
                for name, share in shares.items()
            ]
            console.print("share of a step: " + ", ".join(found))
    print_targets(console, report)
    return report


@contextmanager
def _cudnn_search() -> Iterator[None]:
    """cuDNN looks for the fastest convolutions, as it does in training."""
    before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def _measure_shape(
    options: Options, shape: Shape, dtype: torch.dtype, ranks: Ranks, device: torch.device
) -> list[KernelRow]:
    def make(global_bn: bool = True) -> Step:
        return Step(
            shape, device, dtype, channels_last=options.channels_last, compiled=options.compile,
            ranks=ranks, global_bn=global_bn,
        )  # fmt: skip

    step = make()
    engine = options.engine
    if engine == "auto":
        engine = "resident" if options.file is None else "native"
    batches = step.batches(options.file, engine, options.threads, ranks.rank, ranks.world_size)
    fed = FedStep(step, batches)

    def with_loader() -> Function:
        next(batches)  # raises what is missing
        return fed

    def graph() -> Function:
        check_capture(step)
        return step.whole

    source = f"{engine} engine on {options.file.name if options.file else 'drawn images'}"
    calls = options.calls or (20 if device.type == "cuda" else 3)
    graphs = device.type == "cuda" and ranks.world_size == 1  # of short pieces: in a step, launches run ahead
    beside = "runs beside the step, on the loader's stream or threads"
    pieces = [
        Variant("encoder and head", lambda: step.encoder, note="forward + backward"),
        Variant("loss", lambda: step.loss, graphs, note="NT-Xent, forward + backward"),
        Variant("optimizer", step.make_optimizer, graphs, note="LARS"),
        Variant("augment", lambda: step.augment, graphs, note=beside),
    ]
    steps = [
        Variant(CANNED, lambda: step.whole, note="on canned views"),
        Variant(LOADED, with_loader, note=source),
    ]
    if ranks.world_size > 1:
        steps.append(Variant(LOCAL, lambda: make(global_bn=False).whole, note="batch norms not synchronised"))
    else:
        steps.append(Variant(GRAPH, graph, graph=True, note="on canned views, one CUDA graph"))
    with closing(batches):
        # ranks wait for each other in a call, so they must agree on the number of calls
        timed = partial(measure, device=device, rounds=options.rounds, mean_of_turn=True)
        rows = timed(steps, calls=calls)
        whole_s, loaded = rows[0].median_s, rows[1]
        if loaded.median_s is not None:
            rows[1] = replace(
                loaded,
                data_wait_share=fed.wait_s() / mean(loaded.turns_s),
                slower_share=max(0.0, 1 - whole_s / loaded.median_s) if whole_s else None,
            )
        rows += timed(pieces, calls=max(calls // 4, 1))
    return _with_figures(rows, shape, step, ranks)


def _with_figures(rows: list[KernelRow], shape: Shape, step: Step, ranks: Ranks) -> list[KernelRow]:
    """Return the rows with their rates, floors and shares of the whole step, which is the first row."""
    whole_s = rows[0].median_s
    views = 2 * shape.batch_size
    floors = {
        "encoder and head": flops_floor_s(flops_per_image(shape) * shape.batch_size),
        # a rank computes its own rows of the similarities with all
        "loss": nt_xent_floor_s(views * ranks.world_size, PROJ_DIM) / ranks.world_size,
        "optimizer": lars_floor_s(sum(p.numel() for p in step.params)),
    }
    step_floor = sum(floors.values())
    floors["augment"] = augment_floor_s(views, shape.size, step.dtype.itemsize)
    found = []
    for row in rows:
        if row.median_s is not None:
            row = replace(
                row,
                images_per_s=shape.batch_size * ranks.world_size / row.median_s,
                step_share=row.median_s / whole_s if whole_s else None,
            )
        target = shape.name if row.name == LOADED else None
        found.append(with_floor(row, floors.get(row.name, step_floor), target))
    return found


def _shares(rows: list[KernelRow], ranks: Ranks) -> dict[str, float | None]:
    """Return the shares of a step: data wait, the loader's whole cost, batch norm synchronisation, loss, optimizer."""
    by_name = {row.name: row for row in rows}
    whole_s = by_name[CANNED].median_s
    local_s = by_name[LOCAL].median_s if LOCAL in by_name else None
    sync = 0.0 if ranks.world_size == 1 else None
    if whole_s and local_s:
        sync = max(0.0, 1 - local_s / whole_s)
    return {
        "data wait": by_name[LOADED].data_wait_share,
        "slower with loader": by_name[LOADED].slower_share,
        "batch norm sync": sync,
        "loss": by_name["loss"].step_share,
        "optimizer": by_name["optimizer"].step_share,
    }
