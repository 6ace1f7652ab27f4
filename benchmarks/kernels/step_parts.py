"""The pieces of a SimCLR training step as functions to time, and a loader for it."""

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.kernels.inputs import drawn_crops, random_parameters
from benchmarks.kernels.timing import NotMeasured, require
from fastclr.loss import nt_xent
from fastclr.model import SimCLR, projector, resnet
from fastclr.optim import LARS
from fastclr.train.distributed import Ranks, data_parallel
from pipelines.engines import EngineName
from pipelines.errors import EngineUnavailable
from pipelines.system.cpus import cores
from pipelines.views import ViewSpec

TEMPERATURE = 0.1
PROJ_DIM = 128
GRAPH_SIZE = 96
"""Views up to this size, pixels, are worth a captured step: launches take a share of the time."""


@dataclass(frozen=True)
class Shape:
    """What is trained, on how much."""

    name: str
    depth: int
    """Layers of the ResNet."""
    width: float
    """Multiplier of its channels."""
    size: int
    """Height and width of a view, pixels."""
    batch_size: int
    """Source images of a step on each rank."""

    def changed(self, batch_size: int | None, size: int | None) -> "Shape":
        """Return the shape with another batch or size where they are given."""
        return replace(self, batch_size=batch_size or self.batch_size, size=size or self.size)

    def title(self) -> str:
        wide = "" if self.width == 1 else f" ({self.width:g}× wide)"
        return f"ResNet-{self.depth}{wide}, {self.size} px, {self.batch_size} images a step"


def make_model(shape: Shape) -> SimCLR:
    stem = "cifar" if shape.name.endswith("-32") else "imagenet"
    encoder = resnet(shape.depth, shape.width, stem=stem)
    return SimCLR(encoder, projector(encoder.num_features, out_dim=PROJ_DIM))


def flops_per_image(shape: Shape) -> int:
    """Operations of both views of an image, forward and backward; counted without computing anything."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        model = make_model(shape)
        views = torch.empty(4, 3, shape.size, shape.size)
    with FlopCounterMode(display=False) as counter:
        model(views)[1].sum().backward()
    return counter.get_total_flops() // 2


class Step:
    """A model with its optimizer, canned inputs, and the pieces of a step on them.

    Args:
        shape: what is trained.
        device: where.
        dtype: bfloat16 for autocast, or float32.
        channels_last: memory format of weights and views.
        compiled: compile encoder and head.
        ranks: the ranks that share a step.
        global_bn: whether the ranks' batch norms share their statistics, as training does.
    """

    def __init__(
        self, shape: Shape, device: torch.device, dtype: torch.dtype, *, channels_last: bool, compiled: bool,
        ranks: Ranks, global_bn: bool = True,
    ) -> None:  # fmt: skip
        self.shape, self.device, self.dtype, self.ranks = shape, device, dtype, ranks
        self.spec = ViewSpec.simclr(shape.size)
        torch.manual_seed(0)
        model: nn.Module = make_model(shape).to(device)
        if channels_last:
            model = model.to(memory_format=torch.channels_last)
        # as training does
        self._forward = data_parallel(model, ranks, compiled=compiled, global_bn=global_bn)
        self.params = list(model.parameters())
        self._optimizer = LARS(self.params, lr=1e-3, weight_decay=1e-6)
        self._crops = drawn_crops(self.spec, shape.batch_size, device)
        self._format = torch.channels_last if channels_last else torch.contiguous_format
        self.augment = self._make_augment()
        self._views = self._batch(self.augment())
        self._z = torch.randn(2 * shape.batch_size, PROJ_DIM, device=device, dtype=dtype, requires_grad=True)
        self._dz = 1e-3 * torch.randn(2 * shape.batch_size, PROJ_DIM, device=device)

    def encoder(self) -> None:
        """Encoder and head, forward and backward; with ranks, the gradients' all-reduce too."""
        z = self._embed(self._views)
        self._optimizer.zero_grad(set_to_none=True)
        z.backward(self._dz.to(z.dtype))

    def loss(self) -> Tensor:
        """NT-Xent, forward and backward."""
        return torch.autograd.grad(nt_xent(self._z, TEMPERATURE, self.ranks.group), self._z)[0]

    def make_optimizer(self) -> Callable[[], Any]:
        """A LARS step on tensors of the model's shapes that nobody else moves."""
        shapes = [p.shape for p in self.params]
        return LARS(random_parameters(shapes, self.device), lr=1e-3, weight_decay=1e-6).step

    def whole(self) -> None:
        """A step on canned views."""
        self.on(self._views)

    def on(self, views: Tensor) -> None:
        """A step on views [2B, 3, S, S]."""
        loss = nt_xent(self._embed(views), TEMPERATURE, self.ranks.group)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self._optimizer.step()

    def batches(
        self, file: Path | None, engine: EngineName, threads: int | None, rank: int, world_size: int
    ) -> Generator[Tensor]:
        """Views [2B, 3, S, S] from a loader, epoch after epoch; closing it frees loader and drawn file.

        Raises:
            NotMeasured: what the loader needs is not installed.
            ValueError, OSError: no such file, or one with too few images.
        """
        require("simplejpeg", "simplejpeg")
        from pipelines.loader import TwoViewLoader

        with ExitStack() as stack:
            if file is None:
                folder = Path(stack.enter_context(TemporaryDirectory()))
                file = write_drawn_file(folder / "drawn.beton", self.shape, world_size)
            loader = stack.enter_context(
                TwoViewLoader(
                    file, self.shape.batch_size, spec=self.spec, engine=engine, rank=rank, world_size=world_size,
                    num_threads=threads or cores(), device=self.device, dtype=self.dtype,
                )
            )  # fmt: skip
            while True:
                for batch in loader:
                    yield self._batch(batch.views)

    def _embed(self, views: Tensor) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            return self._forward(views)[1]

    def _batch(self, views: Tensor) -> Tensor:
        return views.flatten(0, 1).contiguous(memory_format=self._format)

    def _make_augment(self) -> Callable[[], Tensor]:
        crops, spec, dtype = self._crops, self.spec, self.dtype
        if self.device.type == "cpu":
            from pipelines.ops.augment import cpu

            return lambda: cpu.augment(crops.pixels, crops.plan.params, spec, dtype)
        try:
            from pipelines.ops.augment import gpu
        except EngineUnavailable:  # no Triton
            from pipelines.ops.augment import reference

            return lambda: reference.augment(crops.pixels, crops.plan.params, spec, dtype)
        table = gpu.params_table(crops.plan.params, spec).to(self.device)
        pixels: Any = crops.pixels
        return lambda: gpu.augment(pixels, table, spec, dtype)


class FedStep:
    """A step that takes its views from a loader, and knows how long the device stood still for them.

    On a GPU two events lie around the request: the time from the end of the step before to where the views are
    ready and the host has said so.  On a CPU it is the time that the request takes.
    """

    WARM = 4
    """First requests, which aren't counted: until the loader is at work."""

    def __init__(
        self, step: Step, batches: Iterator[Tensor], clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._step, self._batches, self._clock = step, batches, clock
        self._marks: list[tuple[Any, Any]] = []

    def __call__(self) -> None:
        before = self._mark()
        views = next(self._batches)
        self._marks.append((before, self._mark()))
        self._step.on(views)

    def wait_s(self) -> float:
        """Mean time of a step that was spent waiting for its views."""
        marks = self._marks[self.WARM :]
        if self._step.device.type == "cpu":
            return sum(after - before for before, after in marks) / len(marks)
        torch.cuda.synchronize(self._step.device)
        return sum(before.elapsed_time(after) for before, after in marks) / 1000 / len(marks)

    def _mark(self) -> Any:
        if self._step.device.type == "cpu":
            return self._clock()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def write_drawn_file(path: Path, shape: Shape, world_size: int) -> Path:
    """A .beton of raw square images of random pixels, as large as the views, for some batches."""
    from pipelines.beton import BetonWriter

    rng = np.random.default_rng(0)
    num_images = shape.batch_size * world_size * (32 if shape.size <= 64 else 8)
    with BetonWriter(path, num_images) as writer:
        for index in range(num_images):
            writer.add_raw(rng.integers(0, 256, (shape.size, shape.size, 3), np.uint8), label=index % 10)
    return path


def check_capture(step: Step) -> None:
    """Raise `NotMeasured` where a step can't be captured as a CUDA graph."""
    if step.device.type != "cuda":
        raise NotMeasured("needs a CUDA device")
    if step.ranks.world_size > 1:
        raise NotMeasured("measured on one rank only")
    if step.shape.size > GRAPH_SIZE:
        raise NotMeasured(f"for views of at most {GRAPH_SIZE} px: a graph keeps a step's memory for itself")
