"""What a run's speeds say: the facts that matter, and what to change, the most promising first."""

import math
from dataclasses import dataclass
from statistics import median

import numpy as np
import psutil

from fastclr.config import Config
from pipelines import BetonReader
from pipelines.system.cpus import cores


@dataclass(frozen=True)
class Facts:
    """What the advice depends on."""

    device: str
    engine: str
    loader_threads: int
    train_threads: int
    cores: int
    batch_size: int
    size: int
    """Of a view, pixels."""
    precision: str
    compiled: bool
    longer_side: int
    """Median of the stored images, pixels."""
    recompressed: bool
    """Whether the file was made with `--jpeg recompress`."""
    decoded_bytes: int
    """Of all images."""
    memory_bytes: int
    """Of the machine."""


@dataclass(frozen=True)
class Speeds:
    """Medians over the rounds."""

    loader: float
    """Source images per second of the loader alone."""
    model: float
    """Source images per second of the training step on a canned batch."""
    together: float
    """Source images per second of both, waiting included."""
    step_alone: float
    """Seconds."""
    step_beside: float
    """Seconds, with a loader in another process."""
    step: float
    """Seconds, with the loader in this process; without the time spent waiting for it."""
    slowdowns: tuple[float, ...]
    """`step` over `step_beside`, one for each round."""

    @property
    def factor(self) -> float:
        """How much faster the one is that does not limit."""
        return max(self.loader, self.model) / min(self.loader, self.model)

    @property
    def interference(self) -> float:
        """Part by which the loader prolongs the step, on top of the cores that it takes."""
        return median(self.slowdowns) - 1

    @property
    def uncertainty(self) -> float:
        """Of `interference`, either way: a boxplot's notch, 1.57·IQR/√n (McGill, Tukey and Larsen 1978)."""
        low, high = np.quantile(self.slowdowns, (0.25, 0.75))
        return float(1.57 * (high - low) / math.sqrt(len(self.slowdowns)))


def facts_of(config: Config, reader: BetonReader) -> Facts:
    """The facts of a resolved config and a file."""
    assert config.data.threads is not None and config.train.threads is not None
    options = (reader.sidecar or {}).get("options", {})
    return Facts(
        device=config.train.device,
        engine=config.data.engine,
        loader_threads=config.data.threads,
        train_threads=config.train.threads,
        cores=cores(),
        batch_size=config.train.batch_size,
        size=config.views.size,
        precision=config.train.precision,
        compiled=config.train.compile,
        longer_side=int(np.median(np.maximum(reader.heights, reader.widths))),
        recompressed=options.get("jpeg") == "recompress",
        decoded_bytes=3 * int((reader.heights.astype(np.int64) * reader.widths).sum()),
        memory_bytes=psutil.virtual_memory().total,
    )


def advice(facts: Facts, speeds: Speeds) -> list[str]:
    """What to change, the most promising first: never empty."""
    return _faster_loader(facts, speeds) if speeds.loader < speeds.model else _faster_model(facts, speeds)


def _faster_loader(facts: Facts, speeds: Speeds) -> list[str]:
    lines = []
    per_loader_thread = speeds.loader / facts.loader_threads
    if facts.device == "cpu":
        balanced = round(_balanced(facts, speeds))
        if facts.loader_threads < balanced < facts.cores:
            lines.append(
                f"threads: --data.threads {balanced} --train.threads {facts.cores - balanced} balances both, at "
                f"about {balanced * per_loader_thread:,.0f} images/s"
            )
    elif facts.loader_threads < facts.cores:
        lines.append(f"threads: --data.threads {facts.cores}, all cores")
    if facts.engine not in ("native", "resident"):
        lines.append("engine: --data.engine native, the fastest that decodes on the CPU")
    if facts.engine != "resident" and facts.decoded_bytes < facts.memory_bytes / 4:
        size = f"{facts.decoded_bytes / 1e9:.1f} GB"
        lines.append(f"engine: --data.engine resident decodes once; the decoded images take {size}")
    if facts.device != "cpu" and facts.engine != "dali":
        lines.append("engine: --data.engine dali decodes on the GPU, if that has time to spare")
    side = max(64, math.ceil(2.2 * facts.size / 10) * 10)  # 500 for 224, FFCV's convention for ImageNet
    if facts.longer_side > side:
        lines.append(
            f"max side: the stored images are {facts.longer_side} pixels long, {side} are enough for views of "
            f"{facts.size}: fastclr convert SOURCE OUT.beton --max-side {side} --jpeg recompress"
        )
    elif not facts.recompressed and facts.engine != "resident":
        lines.append(
            "jpeg: fastclr convert SOURCE OUT.beton --jpeg recompress: decoding is often 1.5× as fast"
        )
    if not lines:
        lines.append("nothing is left to set: more cores, or a larger model, or views of fewer pixels")
    return lines


def _faster_model(facts: Facts, speeds: Speeds) -> list[str]:
    lines = []
    needed = math.ceil(facts.loader_threads / speeds.factor)
    if facts.device == "cpu" and needed < facts.loader_threads:
        lines.append(
            f"threads: {needed} of the loader's would keep up; --data.threads {needed} --train.threads "
            f"{facts.cores - needed}"
        )
    if facts.device != "cpu":
        if facts.precision != "bfloat16":
            lines.append("precision: --train.precision bfloat16")
        if not facts.compiled:
            lines.append("compile: --train.compile, slower to start and faster to run")
        lines.append(f"batch: a larger one than {facts.batch_size} may fill the GPU better")
    lines.append(
        "the loader keeps up: only a faster device, a smaller model or views of fewer pixels than "
        f"{facts.size} make training faster"
    )
    return lines


def _balanced(facts: Facts, speeds: Speeds) -> float:
    """Loader threads t of c cores at which t·(loader per thread) = (c − t)·(model per thread)."""
    loader, model = speeds.loader / facts.loader_threads, speeds.model / facts.train_threads
    return facts.cores * model / (loader + model)
