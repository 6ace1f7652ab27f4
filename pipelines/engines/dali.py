"""The DALI engine: NVIDIA DALI decodes, crops and flips, on the CPU or with nvJPEG on a GPU.

    JPEG bytes, boxes, flips ─feed─▶ decode ─▶ slice ─▶ resize ─▶ flip  (×V from one decode)

DALI draws nothing itself: boxes and flips of the plans are fed beside the encoded bytes.  A slice is taken
before the resize, because DALI's own region of interest lets pixels from beyond the box bleed in.
"""

from collections import deque
from collections.abc import Generator, Iterator
from typing import Any

import numpy as np
import torch

from pipelines.beton import BetonReader
from pipelines.beton.layout import JPEG_MODE
from pipelines.contracts import BatchPlan, Crops, Pixels, Planner
from pipelines.errors import EngineUnavailable
from pipelines.jpeg.probe import finds_restarts
from pipelines.jpeg.window import cut_window
from pipelines.views import Group

INSTALL = "pip install 'fastclr[dali]' (CUDA 12) or 'fastclr[dali-cuda13]' (CUDA 13)"
REPLACES_NONE = "engine dali replaces no sample, engine native does"


class DaliEngine:
    """Decodes each image once with DALI and crops all its views.

    Crops are within one gray level of torchvision, except in the outermost row and column of pixels, since DALI's
    resize treats borders differently.

    Args:
        reader: the file; either all JPEGs or all raw pixels.
        planner: not used before `run`.
        num_threads: DALI's threads, which decode on the CPU and prepare the bytes for nvJPEG.
        device: "cpu", or a CUDA device on which nvJPEG decodes and the crops stay.
        augment: not used; the crops are augmented behind the engine.
        prefetch: batches that DALI works on ahead of the receiver.

    Raises:
        EngineUnavailable: DALI is not installed.
        ValueError: a file of both JPEGs and raw pixels; from the iterator of `run`, a corrupt sample, by name.
    """

    def __init__(
        self,
        reader: BetonReader,
        planner: Planner,
        *,
        num_threads: int,
        device: torch.device | str = "cpu",
        augment: bool | None = None,
        prefetch: int = 2,
    ) -> None:
        try:
            import nvidia.dali  # noqa: F401
        except ImportError as error:
            raise EngineUnavailable(f"engine dali needs NVIDIA DALI ({error}): {INSTALL}") from error
        self.reader, self.num_threads, self.prefetch = reader, num_threads, prefetch
        self.device = torch.device(device)
        jpegs = reader.modes == JPEG_MODE
        if jpegs.any() != jpegs.all():
            raise ValueError(
                f"{reader.path}: engine dali takes files of JPEGs or of raw pixels, this one holds both; "
                "convert the images again, or use engine native"
            )
        self._encoded = bool(jpegs.all())
        self._cuts_windows = self._encoded and finds_restarts(reader)

    def run(self, plans: Iterator[BatchPlan], planner: Planner) -> Generator[Crops]:
        # plans whose batches are not yet handed out, each with the memory that DALI still reads
        underway: deque[tuple[BatchPlan, list[Any]]] = deque()
        groups = planner.groups
        pipeline = self._build(self._inputs(plans, underway), groups, planner.batch_size)
        # outputs are bound to torch's stream: DALI reuses their memory only after the work that torch queued there
        stream = torch.cuda.current_stream(self.device) if self.device.type == "cuda" else None
        pipeline.schedule_run()  # the first call fills the queue: `prefetch` batches
        while True:
            try:
                outputs = pipeline.share_outputs(cuda_stream=stream)
            except StopIteration:
                return
            except RuntimeError as error:
                raise self._name_the_corrupt(underway, error) from error
            pixels = self._collect(outputs, groups)
            pipeline.release_outputs()
            pipeline.schedule_run()
            yield Crops(underway.popleft()[0], pixels)

    def close(self) -> None:
        """Do nothing: the engine holds nothing between runs."""

    def _build(self, inputs: Iterator[list[Any]], groups: tuple[Group, ...], batch_size: int) -> Any:
        from nvidia.dali import Pipeline, fn, types

        sizes = [group.size for group in groups for _ in range(group.num_views)]
        on_gpu = self.device.type == "cuda"
        gpu = torch.cuda.current_device() if on_gpu and self.device.index is None else self.device.index
        pipeline = Pipeline(
            batch_size=batch_size,
            num_threads=self.num_threads,
            device_id=gpu if on_gpu else None,
            prefetch_queue_depth=self.prefetch,
            exec_dynamic=True,
        )
        with pipeline:
            # no copy: the bytes are in the memory-mapped file; `underway` keeps them and the drawn numbers alive
            images, *numbers = fn.external_source(
                inputs,
                num_outputs=1 + 3 * len(sizes),
                no_copy=True,
                dtype=[types.UINT8] + 3 * len(sizes) * [types.INT32],
            )
            if self._encoded:
                images = fn.decoders.image(
                    images,
                    device="mixed" if on_gpu else "cpu",
                    output_type=types.RGB,
                    # ignore EXIF orientation, as PIL and FFCV do
                    adjust_orientation=False,
                    # with this option nvJPEG interpolates chroma, as libjpeg does
                    jpeg_fancy_upsampling=True,
                )
            elif on_gpu:
                images = images.gpu()
            crops = []
            for size, start, shape, flip in zip(sizes, *[iter(numbers)] * 3, strict=True):
                crop = fn.slice(images, start, shape, axes=(0, 1))
                crop = fn.resize(crop, size=(size, size), interp_type=types.INTERP_LINEAR, antialias=True)
                crops.append(fn.flip(crop, horizontal=flip))
            pipeline.set_outputs(*crops)
        pipeline.build()
        return pipeline

    def _inputs(
        self, plans: Iterator[BatchPlan], underway: deque[tuple[BatchPlan, list[Any]]]
    ) -> Iterator[list[Any]]:
        """Yield DALI's inputs for a batch: the images, then start, shape and flip of each view."""
        reader = self.reader
        for plan in plans:
            for index in plan.indices.tolist():
                self._check_header(index)
            images = [reader.image_bytes(index) for index in plan.indices]
            boxes = plan.params.box
            if self._cuts_windows:
                images, boxes = self._cut(images, boxes)
            if not self._encoded:
                sizes = zip(reader.heights[plan.indices], reader.widths[plan.indices], strict=True)
                images = [
                    image.reshape(height, width, 3)
                    for image, (height, width) in zip(images, sizes, strict=True)
                ]
            numbers = []
            for box, flip in zip(boxes, plan.params.flip, strict=True):
                numbers += [box[:, :2].copy(), box[:, 2:].copy(), flip.astype(np.int32)]
            fed = [images, *numbers]
            underway.append((plan, fed))
            yield fed

    def _cut(self, images: list[np.ndarray], boxes: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
        """Return the JPEGs of the windows that all crops lie in, and the boxes within these windows."""
        low, high = boxes[..., :2].min(0), (boxes[..., :2] + boxes[..., 2:]).max(0)
        boxes, windows = boxes.copy(), []
        for row, (image, first, last) in enumerate(zip(images, low.tolist(), high.tolist(), strict=True)):
            window, corner = cut_window(image, *first, *last)
            windows.append(window)
            boxes[:, row, :2] -= np.array(corner, np.int32)
        return windows, boxes

    def _check_header(self, index: int) -> None:
        """Check a JPEG's header: DALI would crop one whose size differs from the metadata at wrong positions."""
        try:
            self.reader.check_header(index)
        except ValueError as error:
            raise ValueError(f"{error}; {REPLACES_NONE}") from None

    def _collect(self, outputs: Any, groups: tuple[Group, ...]) -> tuple[Pixels, ...]:
        """Return copies of the outputs, uint8 [V_g, B, H_g, W_g, 3] for each group, since DALI reuses its memory."""
        parts = [[outputs[view] for view in range(group.views.start, group.views.stop)] for group in groups]
        if self.device.type == "cuda":
            return tuple(
                torch.stack([torch.from_dlpack(crops.as_tensor()) for crops in part]) for part in parts
            )
        return tuple(np.stack([crops.as_array() for crops in part]) for part in parts)

    def _name_the_corrupt(
        self, underway: deque[tuple[BatchPlan, list[Any]]], error: RuntimeError
    ) -> ValueError:
        """Return an error that names the corrupt sample, found by the strict decoder: DALI's own error does not."""
        for plan, _ in underway:
            for index in plan.indices.tolist():
                try:
                    self.reader.decode(index)
                except ValueError as found:
                    return ValueError(f"{found}; {REPLACES_NONE}")
        return ValueError(f"{self.reader.path}: DALI failed: {' '.join(str(error).split())}")
