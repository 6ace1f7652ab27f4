"""Recommends what to change in a run, by the throughputs of its parts."""

import math
from dataclasses import dataclass, field
from statistics import median

import numpy as np
import psutil

from fastclr.config import Config
from pipelines import BetonReader
from pipelines.system.cpus import cores


@dataclass(frozen=True)
class RunSetup:
    """The properties of a run that the recommendations depend on."""

    device: str
    engine: str
    loader_threads: int
    train_threads: int
    cores: int
    batch_size: int
    size: int
    """Side length of a view in pixels."""
    precision: str
    compiled: bool
    longer_side: int
    """Median longer side of the stored images, pixels."""
    recompressed: bool
    """Whether the file was made with `--jpeg recompress`."""
    decoded_bytes: int
    """Size of all decoded images."""
    memory_bytes: int
    """Memory of the machine."""


@dataclass(frozen=True)
class Throughputs:
    """Measured throughputs: medians over the rounds."""

    loader: float
    """Source images per second of the loader alone."""
    model: float
    """Source images per second of the training step on a canned batch."""
    together: float
    """Source images per second of both, waiting included."""
    step_alone: float
    """Seconds of a step on a canned batch."""
    step: float
    """Seconds of a step with the loader in this process, without the time spent waiting for it."""
    step_beside: float | None = None
    """Seconds of a step on a canned batch with a loader in another process; None: not measured."""
    slowdowns: list[float] = field(default_factory=list)
    """`step` over `step_beside`, one for each round."""

    @property
    def limits(self) -> str:
        """What limits training: "loader" or "model"."""
        return "loader" if self.loader < self.model else "model"

    @property
    def factor(self) -> float:
        """How many times as fast the part is that does not limit."""
        return max(self.loader, self.model) / min(self.loader, self.model)

    @property
    def interference(self) -> float | None:
        """Relative slowdown of the step by a loader in this process, on top of the cores that it takes."""
        return median(self.slowdowns) - 1 if self.slowdowns else None

    @property
    def uncertainty(self) -> float | None:
        """Half-width of a boxplot's notch of `interference`, 1.57·IQR/√n (McGill, Tukey and Larsen 1978)."""
        if not self.slowdowns:
            return None
        low, high = np.quantile(self.slowdowns, (0.25, 0.75))
        return float(1.57 * (high - low) / math.sqrt(len(self.slowdowns)))


def setup_of_run(config: Config, reader: BetonReader) -> RunSetup:
    """Return the setup of a resolved config on a file."""
    assert config.data.threads is not None and config.train.threads is not None
    options = (reader.sidecar or {}).get("options", {})
    return RunSetup(
        device=config.train.device,
        engine=config.data.engine,
        loader_threads=config.data.threads,
        train_threads=config.train.threads,
        cores=cores(),
        batch_size=config.train.batch_size,
        size=config.view_size,
        precision=config.train.precision,
        compiled=config.train.compile,
        longer_side=int(np.median(np.maximum(reader.heights, reader.widths))),
        recompressed=options.get("jpeg") == "recompress",
        decoded_bytes=3 * int((reader.heights.astype(np.int64) * reader.widths).sum()),
        memory_bytes=psutil.virtual_memory().total,
    )


def recommendations(setup: RunSetup, speeds: Throughputs) -> list[str]:
    """Return what to change, the most promising first; never empty."""
    return _faster_loader(setup, speeds) if speeds.limits == "loader" else _faster_model(setup, speeds)


def _faster_loader(setup: RunSetup, speeds: Throughputs) -> list[str]:
    lines = []
    per_loader_thread = speeds.loader / setup.loader_threads
    if setup.device == "cpu":
        balanced = round(_balanced(setup, speeds))
        if setup.loader_threads < balanced < setup.cores:
            lines.append(
                f"threads: --data.threads {balanced} --train.threads {setup.cores - balanced} balances both, at "
                f"about {balanced * per_loader_thread:,.0f} images/s"
            )
    elif setup.loader_threads < setup.cores:
        lines.append(f"threads: --data.threads {setup.cores}, all cores")
    if setup.engine not in ("native", "resident"):
        lines.append("engine: --data.engine native, the fastest that decodes on the CPU")
    if setup.engine != "resident" and setup.decoded_bytes < setup.memory_bytes / 4:
        size = f"{setup.decoded_bytes / 1e9:.1f} GB"
        lines.append(f"engine: --data.engine resident decodes once; the decoded images take {size}")
    if setup.device != "cpu" and setup.engine != "dali":
        lines.append("engine: --data.engine dali decodes on the GPU, if that has time to spare")
    side = max(64, math.ceil(2.2 * setup.size / 10) * 10)  # 500 for 224, FFCV's convention for ImageNet
    if setup.longer_side > side:
        lines.append(
            f"max side: the stored images are {setup.longer_side} pixels long, {side} are enough for views of "
            f"{setup.size}: fastclr convert SOURCE OUT.beton --max-side {side} --jpeg recompress"
        )
    elif not setup.recompressed and setup.engine != "resident":
        lines.append(
            "jpeg: fastclr convert SOURCE OUT.beton --jpeg recompress: decoding is often 1.5× as fast"
        )
    if not lines:
        lines.append("no setting would help: take more cores, a larger model, or views of fewer pixels")
    return lines


def _faster_model(setup: RunSetup, speeds: Throughputs) -> list[str]:
    lines = []
    needed = math.ceil(setup.loader_threads / speeds.factor)
    if setup.device == "cpu" and needed < setup.loader_threads:
        lines.append(
            f"threads: {needed} of the loader's would keep up; --data.threads {needed} --train.threads "
            f"{setup.cores - needed}"
        )
    if setup.device != "cpu":
        if setup.precision != "bfloat16":
            lines.append("precision: --train.precision bfloat16")
        if not setup.compiled:
            lines.append("compile: --train.compile, slower to start and faster to run")
        lines.append(f"batch: a larger one than {setup.batch_size} may fill the GPU better")
    lines.append(
        "the loader keeps up: only a faster device, a smaller model or views of fewer pixels than "
        f"{setup.size} make training faster"
    )
    return lines


def _balanced(setup: RunSetup, speeds: Throughputs) -> float:
    """Return the number of loader threads t of c cores at which t·(loader per thread) = (c − t)·(model per thread)."""
    loader, model = speeds.loader / setup.loader_threads, speeds.model / setup.train_threads
    return setup.cores * model / (loader + model)
