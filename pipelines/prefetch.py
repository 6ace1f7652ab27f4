"""DeviceStage: crops become a Batch where the receiver wants it, on the CPU or on a GPU."""

import warnings
from collections.abc import Callable, Generator, Iterator
from functools import partial

import numpy as np
import torch

from pipelines.contracts import Batch, Crops
from pipelines.errors import EngineUnavailable
from pipelines.ops.augment import cpu, reference
from pipelines.system.triton import why_no_triton
from pipelines.views import ViewSpec


class DeviceStage:
    """Augments crops on the device they are wanted on.

    On a GPU the copy and the augmentation of a batch are queued on a stream of their own while the receiver
    works on the batch before, so a training step finds its views ready.

    Args:
        device: "cpu" or a CUDA device.
        dtype: of the views; None means float32 on the CPU, and on a GPU bfloat16 or, where its hardware lacks
            that, float16.
        num_threads: that augment on the CPU, for engines whose workers did not.

    Raises:
        EngineUnavailable: a CUDA device is asked for where there is none.
        ValueError: a device that is neither CPU nor CUDA.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype | None = None, num_threads: int = 1) -> None:
        if device.type not in ("cpu", "cuda"):
            raise ValueError(f"device must be cpu or cuda, got {device}")
        if device.type == "cuda" and not torch.cuda.is_available():
            raise EngineUnavailable("device cuda: torch sees no GPU here; use device cpu")
        self.device = device
        self.dtype = dtype or _half(device)
        self._augment = _augmentation(device, num_threads)
        # one for all epochs: torch keeps the memory that a stream has used for that stream
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def run(self, crops: Iterator[Crops], spec: ViewSpec, labels: np.ndarray) -> Generator[Batch]:
        """Batches in the order of the crops."""
        if self.device.type == "cpu":
            return (self._batch(one, spec, labels) for one in crops)
        return self._ahead(crops, spec, labels)

    def _batch(self, crops: Crops, spec: ViewSpec, labels: np.ndarray) -> Batch:
        plan, pixels = crops
        if pixels.dtype in (np.float32, torch.float32):  # the engine's workers have augmented already
            views = torch.as_tensor(pixels).permute(0, 1, 4, 2, 3).to(self.device, self.dtype)
        else:
            views = self._augment(crops, spec, dtype=self.dtype)
        return Batch(
            views=views,
            labels=torch.from_numpy(labels[plan.indices]).to(self.device, non_blocking=True),
            indices=torch.from_numpy(plan.indices.copy()).to(self.device, non_blocking=True),
            epoch=plan.epoch,
            step=plan.step,
        )

    def _ahead(self, crops: Iterator[Crops], spec: ViewSpec, labels: np.ndarray) -> Generator[Batch]:
        stream = self._stream
        assert stream is not None
        copied = torch.cuda.Event()
        one: Crops | None = None

        def prepare() -> Batch | None:
            nonlocal one
            if one is not None:
                copied.synchronize()  # queued a whole step ago; now its host memory may be used again
            with torch.cuda.stream(stream):
                one = next(crops, None)  # an engine on the GPU queues its work here too
                if one is None:
                    return None
                batch = self._batch(one, spec, labels)
                copied.record(stream)
            return batch

        following = prepare()
        while following is not None:
            current = torch.cuda.current_stream(self.device)
            current.wait_stream(stream)
            batch = following
            for tensor in (batch.views, batch.labels, batch.indices):
                tensor.record_stream(current)  # or its memory could be reused while the receiver still reads
            following = prepare()
            yield batch


def _half(device: torch.device) -> torch.dtype:
    """The type of views that the device computes on fastest; float32 on a CPU."""
    if device.type == "cpu":
        return torch.float32
    return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16


def _augmentation(device: torch.device, num_threads: int) -> Callable[..., torch.Tensor]:
    """`augment(crops, spec, dtype)` for crops that are wanted on this device."""
    if device.type == "cpu":
        return partial(cpu.augment, num_threads=num_threads)

    def on_device(crops: Crops) -> torch.Tensor:
        return torch.as_tensor(crops.pixels).to(device, non_blocking=True)

    if reason := why_no_triton():
        warnings.warn(f"augmentation in plain torch, slower: {reason}", RuntimeWarning, stacklevel=2)
        return lambda crops, spec, dtype: reference.augment(Crops(crops.plan, on_device(crops)), spec, dtype)
    from pipelines.ops.augment import gpu

    return lambda crops, spec, dtype: gpu.augment(on_device(crops), crops.plan.params, spec, dtype)
