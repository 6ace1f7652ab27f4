"""SPDL: a pipeline of functions in threads, decoding with FFmpeg and cropping with torchvision's uint8 kernels."""

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

from benchmarks.loaders.peers.jpegs import open_jpegs
from pipelines.beton import Files
from pipelines.errors import EngineUnavailable

INSTALL = "pip install spdl-io spdl-core, and FFmpeg's libraries (apt-get install ffmpeg)"


@dataclass
class SpdlLoader:
    """Each image is decoded once and cropped twice in one thread; crops only, which is what SPDL itself speeds up.

    Two decodes with FFmpeg's own crop and scale filters took a third longer.
    """

    name: str
    file: Files
    size: int
    batch_size: int
    num_threads: int
    lacks: str = ""

    def open(self) -> "_Opened":
        try:
            import spdl.io
            import spdl.pipeline

            spdl.io.demux_image  # noqa: B018 (FFmpeg's libraries are loaded by the first use)
        except (ImportError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise EngineUnavailable(f"needs the package spdl ({reason}): {INSTALL}") from error
        import torch

        torch.set_num_threads(1)  # the pipeline has threads of its own
        return _Opened(open_jpegs(self.file), self.size)

    def epoch(self, loader: "_Opened") -> Generator[int]:
        import numpy as np
        import torch
        from spdl.pipeline import PipelineBuilder

        order = np.random.default_rng().permutation(len(loader.reader)).tolist()
        pipeline: Any = (
            PipelineBuilder()
            .add_source(order)
            .pipe(loader.two_crops, concurrency=self.num_threads)
            .aggregate(self.batch_size, drop_last=True)
            .pipe(torch.stack)
            .add_sink(2)
            .build(num_threads=self.num_threads)
        )
        with pipeline.auto_stop():
            for batch in pipeline.get_iterator():
                yield len(batch)


@dataclass
class _Opened:
    reader: Any
    size: int

    def two_crops(self, index: int) -> Any:
        """uint8 [2, 3, H, W]."""
        import spdl.io
        import torch
        from torchvision.transforms import RandomResizedCrop
        from torchvision.transforms.v2.functional import hflip, resized_crop

        packets = spdl.io.demux_image(self.reader.image_bytes(index).tobytes())
        frames = spdl.io.decode_packets(packets, filter_desc="format=pix_fmts=rgb24")
        image = spdl.io.to_torch(spdl.io.convert_frames(frames)).permute(2, 0, 1)
        views = []
        for _ in range(2):
            box = RandomResizedCrop.get_params(image, (0.08, 1.0), (3 / 4, 4 / 3))
            view = resized_crop(image, *box, [self.size, self.size], antialias=True)
            views.append(hflip(view) if torch.rand(1) < 0.5 else view)
        return torch.stack(views)
