"""DevicePrefetcher: makes a Batch of crops on the receiver's device, a CPU or a GPU."""

import warnings
from collections.abc import Callable, Generator, Iterator

import numpy as np
import torch

from pipelines.contracts import Batch, Crops, Pixels, Views
from pipelines.errors import EngineUnavailable
from pipelines.ops.augment import cpu, reference
from pipelines.system.triton import why_no_triton
from pipelines.views import Group


class DevicePrefetcher:
    """Makes batches of crops on a device, and augments them if the engine did not.

    On a GPU, copy and augmentation of a batch are queued on a separate stream while the receiver works on the previous
    batch, so that a training step finds its views ready.

    Args:
        device: "cpu" or a CUDA device.
        dtype: of the views; None means float32 on the CPU, and on a GPU bfloat16 or, where its hardware lacks
            that, float16.
        num_threads: threads that augment on the CPU, for engines whose workers did not.
        augment: False leaves the crops as they are, uint8 [V_g, B, H_g, W_g, 3].

    Raises:
        EngineUnavailable: a CUDA device is asked for where there is none.
        ValueError: the device is neither CPU nor CUDA.
    """

    def __init__(
        self,
        device: torch.device,
        dtype: torch.dtype | None = None,
        num_threads: int = 1,
        augment: bool = True,
    ) -> None:
        if device.type not in ("cpu", "cuda"):
            raise ValueError(f"device must be cpu or cuda, got {device}")
        if device.type == "cuda" and not torch.cuda.is_available():
            raise EngineUnavailable("device cuda: torch sees no GPU here; use device cpu")
        self.device = device
        self.dtype = dtype or _half(device)
        self._augment = _augmentation(device, num_threads) if augment else None
        # one stream for all epochs: torch keeps the memory that a stream has used for that stream
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def run(
        self, pixels: Iterator[Crops | Views], groups: tuple[Group, ...], labels: np.ndarray
    ) -> Generator[Batch]:
        """Yield batches in the order of the crops or views."""
        if self.device.type == "cpu":
            return (self._batch(one, groups, labels) for one in pixels)
        return self._prefetch(pixels, groups, labels)

    def _batch(self, one: Crops | Views, groups: tuple[Group, ...], labels: np.ndarray) -> Batch:
        plan = one.plan
        if isinstance(one, Views):
            views = [
                torch.as_tensor(values).permute(0, 1, 4, 2, 3).to(self.device, self.dtype)
                for values in one.values
            ]
        elif self._augment is None:
            views = [self._on_device(crops) for crops in one.pixels]
        else:
            views = [
                self._augment(self._on_device(crops), plan.params[group.views], group, self.dtype)
                for group, crops in zip(groups, one.pixels, strict=True)
            ]
        return Batch(
            views=views[0] if len(views) == 1 else tuple(views),
            labels=torch.from_numpy(labels[plan.indices]).to(self.device, non_blocking=True),
            indices=torch.from_numpy(plan.indices.copy()).to(self.device, non_blocking=True),
            epoch=plan.epoch,
            step=plan.step,
            params=plan.params,
        )

    def _on_device(self, pixels: Pixels) -> torch.Tensor:
        return torch.as_tensor(pixels).to(self.device, non_blocking=True)

    def _prefetch(
        self, pixels: Iterator[Crops | Views], groups: tuple[Group, ...], labels: np.ndarray
    ) -> Generator[Batch]:
        """Prepare batch n + 1 on the prefetcher's stream, then yield batch n.

        Three measures prevent that memory is reused too early.  The receiver's stream waits for ours before it gets a
        batch.  Each tensor of a batch is recorded on the receiver's stream, so that torch does not reuse its memory
        while the receiver's queued work reads it.  The host memory of a batch's crops is kept until the event `copied`,
        recorded after their copy, has passed; it is checked a whole step later, so that no thread waits for it.
        """
        stream = self._stream
        assert stream is not None
        copied = torch.cuda.Event()
        one: Crops | Views | None = None

        def prepare() -> Batch | None:
            nonlocal one
            if one is not None:
                copied.synchronize()
            with torch.cuda.stream(stream):
                # an engine that crops on the GPU queues its work on this stream, too
                one = next(pixels, None)
                if one is None:
                    return None
                batch = self._batch(one, groups, labels)
                copied.record(stream)
            return batch

        following = prepare()
        while following is not None:
            current = torch.cuda.current_stream(self.device)
            current.wait_stream(stream)
            batch = following
            views = batch.views if isinstance(batch.views, tuple) else (batch.views,)
            for tensor in (*views, batch.labels, batch.indices):
                tensor.record_stream(current)
            following = prepare()
            yield batch


def _half(device: torch.device) -> torch.dtype:
    """Return the type of views that the device computes on fastest; float32 on a CPU."""
    if device.type == "cpu":
        return torch.float32
    return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16


def _augmentation(device: torch.device, num_threads: int) -> Callable[..., torch.Tensor]:
    """Return `augment(crops, params, group, dtype)` for the crops of a group that lie on this device."""
    if device.type == "cpu":
        return lambda crops, params, group, dtype: cpu.augment(
            crops, params, group.specs[0], dtype, num_threads
        )
    if reason := why_no_triton():
        warnings.warn(f"augmentation in plain torch, slower: {reason}", RuntimeWarning, stacklevel=2)
        return lambda crops, params, group, dtype: reference.augment(crops, params, group.specs[0], dtype)
    # imported here because it needs Triton
    from pipelines.ops.augment import gpu

    return lambda crops, params, group, dtype: gpu.augment(crops, params, group.specs[0], dtype)
