"""TwoViewDecoder: an FFCV operation that decodes an image once and crops all its views.

It goes into the `pipelines` of a stock `ffcv.loader.Loader`; FFCV compiles and drives it like its own:

    'image' ──TwoViewDecoder──┬─Pick(0)─▶ uint8 [B, H, W, 3]
                              └─Pick(1)─▶ uint8 [B, H, W, 3]

This file needs the package `ffcv`; `pipelines.engines.ffcv.engine` imports it where it is used.
"""

import os
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace

import ffcv._libffcv
import numpy as np
from ffcv.loader import Loader
from ffcv.pipeline import PipelineSpec
from ffcv.pipeline.allocation_query import AllocationQuery
from ffcv.pipeline.compiler import Compiler
from ffcv.pipeline.operation import Operation
from ffcv.pipeline.state import State
from ffcv.reader import Reader
from numba import get_num_threads

from pipelines.beton import BetonReader
from pipelines.beton.layout import JPEG_MODE
from pipelines.engines.ffcv.loader import drive
from pipelines.engines.ffcv.one_file import reject_sets
from pipelines.engines.ffcv.sample import bytes_at, claim, compile_decode_sample, decode_sample
from pipelines.engines.native.turbojpeg import (
    ACCURATE_DCT,
    FAST_DCT,
    cached_start,
    close_decoder,
    open_decoder,
)
from pipelines.jpeg.probe import finds_restarts
from pipelines.ops.crop.cpu import scratch_bytes
from pipelines.views import ViewParams, ViewSpec, as_specs, draw_views, groups_of

DRAWN_AT_ONCE = 1 << 16
"""Number of samples whose numbers are drawn at once: bounds the working memory of `set_epoch`."""


class TwoViewDecoder(Operation):
    """Decodes each image once and crops, resizes and flips all its views, by numbers drawn beforehand.

    Given the same file, spec, seed and epoch, all engines of this package produce these pixels.  The compiled code
    reads the numbers through a pointer to a table (34 bytes per sample of two views): a new epoch compiles nothing.

    Args:
        file: the `.beton` file that the loader reads, or an open BetonReader of it.
        size: height and width of a view, with the crops of SimCLR; or give `views`.
        views: scale, ratio, flip, size and number of the views, as one ViewSpec or several; their color and blur are
            not applied.
        spec: another name of `views`.
        seed: 64-bit seed of the crops.
        epoch: the first epoch; None leaves the table empty, for a caller that fills it by `set_crops`.
        fast_dct: decode with the fast, less accurate inverse DCT that FFCV's own decoders use.

    Raises:
        ValueError: a bad file or argument; the message says which.

    >>> decoder = TwoViewDecoder("train.beton", size=224)                                    # doctest: +SKIP
    >>> loader = Loader("train.beton", 256, pipelines={                                      # doctest: +SKIP
    ...     "image": PipelineSpec("image", decoder=decoder, transforms=[Pick(0), ToTensor()]),
    ...     "image2": PipelineSpec(decoder, transforms=[Pick(1), ToTensor()])})
    >>> for first, label, second in decoder.batches(loader): ...                             # doctest: +SKIP
    """

    def __init__(
        self,
        file: str | os.PathLike | BetonReader,
        *,
        size: int | None = None,
        views: ViewSpec | Sequence[ViewSpec] | None = None,
        spec: ViewSpec | Sequence[ViewSpec] | None = None,
        seed: int = 0,
        epoch: int | None = 0,
        fast_dct: bool = False,
    ) -> None:
        super().__init__()
        if [size, views, spec].count(None) != 2:
            raise ValueError("give either size or views")
        self.reader = file if isinstance(file, BetonReader) else BetonReader(file)
        reject_sets(self.reader)
        self.specs = as_specs(views or spec or ViewSpec.simclr(size or 224))
        self.seed, self.fast_dct = seed, fast_dct
        groups = groups_of(self.specs)
        self.view_sizes = np.repeat([g.size for g in groups], [g.num_views for g in groups]).astype(np.int64)
        """int64 [V]: height and width of each view, pixels."""
        num_views, samples = len(self.view_sizes), len(self.reader)
        # indexed by sample first, so that the views of one sample lie together
        self._box = np.zeros((samples, num_views, 4), np.int32)
        self._flip = np.zeros((samples, num_views), np.bool_)
        self._failed = np.zeros(samples, np.bool_)
        compile_decode_sample(ffcv._libffcv.__file__)
        if epoch is not None:
            self.set_epoch(epoch)

    def set_epoch(self, epoch: int) -> None:
        """Draw the views of this epoch (a second per million images).  Call it while no iterator is running.

        Raises:
            ValueError: a sample met so far was corrupt.
        """
        self.check()
        heights, widths = self.reader.heights, self.reader.widths
        for low in range(0, len(self.reader), DRAWN_AT_ONCE):
            some = np.arange(low, min(low + DRAWN_AT_ONCE, len(self.reader)))
            self.set_crops(some, draw_views(self.specs, self.seed, epoch, some, heights[some], widths[some]))

    def set_crops(self, indices: np.ndarray, params: ViewParams) -> None:
        """Set the crops of these samples: indices int [B], params [V, B, …]."""
        self._box[indices] = params.box.swapaxes(0, 1)
        self._flip[indices] = params.flip.swapaxes(0, 1)

    def batches(self, loader: Loader) -> Generator[tuple]:
        """Yield the batches of an epoch of a loader that this decoder is part of; end its threads afterwards.

        Raises:
            ValueError: a sample decoded so far is corrupt; the message names it.
        """
        batches = drive(loader)
        try:
            for batch in batches:
                self.check()
                yield batch
        finally:
            batches.close()

    def take_failed(self, indices: np.ndarray) -> np.ndarray:
        """Return the positions in `indices` of samples that libturbojpeg refused, and clear their marks."""
        failed = np.flatnonzero(self._failed[indices])
        self._failed[indices[failed]] = False
        return failed

    def check(self) -> None:
        """Raise ValueError, naming file, sample and reason, if a sample was corrupt."""
        failed = np.flatnonzero(self._failed)
        if len(failed):
            self._failed[failed] = False
            sample = int(failed[0])
            self.reader.decode(sample)  # it knows the reason
            raise ValueError(f"{self.reader.where(sample)}: libturbojpeg could not decode its JPEG")

    def declare_state_and_memory(self, previous_state: State) -> tuple[State, tuple[AllocationQuery, ...]]:
        columns = {
            "height": self.reader.heights,
            "width": self.reader.widths,
            "data_ptr": self.reader.offsets,
        }
        # the compiled code checks nothing, so FFCV must read the very file that the reader has checked
        if not all(np.array_equal(self.metadata[name], column) for name, column in columns.items()):
            raise ValueError(
                f"the decoder was made for the images of {self.reader.path}, the loader has others"
            )
        shapes, dtype = [(size, size, 3) for size in self.view_sizes.tolist()], np.dtype("u1")
        # one shape per view; `Pick` selects one of them
        state = replace(previous_state, jit_mode=True, shape=tuple(shapes), dtype=dtype)
        return state, tuple(AllocationQuery(shape, dtype) for shape in shapes)

    def generate_code(self) -> Callable:
        read, iterate = self.memory_read, Compiler.get_iterator()
        num_samples, num_views = self._flip.shape
        box_at, flip_at, failed_at = (a.ctypes.data for a in (self._box, self._flip, self._failed))
        heights, widths, sizes = self.reader.heights, self.reader.widths, self.view_sizes
        sizes_at = sizes.ctypes.data
        image_bytes = 3 * int((heights.astype(np.int64) * widths).max())
        crop_bytes = int(scratch_bytes(heights.max(), widths.max(), sizes.max(), sizes.max()))
        # a file without restart markers is not searched for them
        cut_bytes = int(self.reader.sizes.max()) if finds_restarts(self.reader) else 0
        dct = FAST_DCT if self.fast_dct else ACCURATE_DCT

        def decode(batch_indices, views, metadata, storage_state):
            failed = bytes_at(failed_at, num_samples)
            unclaimed = np.zeros(1, np.int64)
            # one loop turn per thread, each with its own memory, because several batches may be in the making at once
            for _ in iterate(get_num_threads()):
                decoder = open_decoder()
                # their addresses are taken at each use: numba frees an array behind its last use, address or not
                # pages that are never touched cost nothing
                image = np.empty(image_bytes + 32, np.uint8)
                image_start = np.uintp(cached_start(image, 0))
                scratch = np.empty(crop_bytes, np.uint8)
                cut_jpeg = np.empty(max(cut_bytes, 1), np.uint8)
                view_at = np.empty(num_views, np.uintp)
                row = claim(unclaimed)
                while row < len(batch_indices):
                    sample = batch_indices[row]
                    # numbers beyond the last sample fill up an incomplete batch
                    if sample < num_samples:
                        field = metadata[sample]
                        payload = read(field["data_ptr"], storage_state)
                        for view in range(num_views):
                            view_at[view] = views[view][row].ctypes.data
                        failed[sample] = decode_sample(
                            decoder,
                            payload.ctypes.data,
                            payload.size,
                            field["mode"] == JPEG_MODE,
                            field["height"],
                            field["width"],
                            dct,
                            num_views,
                            sizes_at,
                            box_at + 16 * num_views * sample,
                            flip_at + num_views * sample,
                            view_at.ctypes.data,
                            image.ctypes.data + image_start,
                            scratch.ctypes.data,
                            crop_bytes,
                            cut_jpeg.ctypes.data if cut_bytes else np.uintp(0),
                        )
                    row = claim(unclaimed)
                close_decoder(decoder)
            return views

        decode.is_parallel = True  # type: ignore[attr-defined]
        return decode


class Pick(Operation):
    """Selects one view of a TwoViewDecoder: uint8 [B, H, W, 3], which any of FFCV's operations can process further."""

    def __init__(self, view: int) -> None:
        super().__init__()
        self.view = view

    def declare_state_and_memory(self, previous_state: State) -> tuple[State, None]:
        return replace(previous_state, shape=previous_state.shape[self.view]), None

    def generate_code(self) -> Callable:
        view = self.view

        def pick(views, _):
            return views[view]

        return pick


def make_loader(decoder: TwoViewDecoder, batch_size: int, num_threads: int, batches_ahead: int) -> Loader:
    """Return a stock loader whose batches are the decoder's views; it reads nothing else of the file."""
    data, path = decoder.reader.data, _open_again(decoder.reader)
    handlers = Reader(path).handlers
    source = next(field.name for field in decoder.reader.fields if field.read_as == "image")
    pipelines: dict[str, PipelineSpec | None] = dict.fromkeys(handlers)
    pipelines["view 0"] = PipelineSpec(source, decoder=decoder, transforms=[Pick(0)])
    for view in range(1, len(decoder.view_sizes)):
        pipelines[f"view {view}"] = PipelineSpec(decoder, transforms=[Pick(view)])
    loader = Loader(
        path,
        batch_size,
        num_workers=num_threads,
        os_cache=True,
        drop_last=False,
        batches_ahead=batches_ahead,
        pipelines=pipelines,
    )
    loader.memory_manager.context.mmap = data  # or FFCV would map the file itself, at its first batch
    return loader


def _open_again(reader: BetonReader) -> str:
    """Return a path to the very file that the reader has open: another one may have taken its name meanwhile."""
    name = f"/proc/self/fd/{reader._opened.descriptors[0]}"
    return name if os.path.exists(name) else str(reader._absolute[0])
