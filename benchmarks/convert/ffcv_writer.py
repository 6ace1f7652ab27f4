"""FFCV's own DatasetWriter, over a folder of class folders."""

import os
import time
from pathlib import Path
from typing import Any

from pipelines.beton.layout import page_size
from pipelines.errors import EngineUnavailable


def write(
    folder: Path, out: Path, mode: str, max_side: int, quality: int, workers: int, images: int
) -> float:
    """Convert as FFCV's ImageNet script does, and return the seconds.

    Args:
        folder: class folders.
        mode: "jpg" or "raw".
        workers: processes.
        images: how many to write; a smaller folder is repeated.

    Raises:
        EngineUnavailable: ffcv is not installed.
    """
    os.environ["TQDM_DISABLE"] = "1"  # the writer's progress bar
    from pipelines.engines.ffcv.engine import INSTALL

    try:
        from ffcv.fields import IntField, RGBImageField
        from ffcv.writer import DatasetWriter
    except (ImportError, OSError) as error:
        raise EngineUnavailable(f"needs the package ffcv ({error}): {INSTALL}") from error
    fields = {
        "image": RGBImageField(write_mode=mode, max_resolution=max_side, jpeg_quality=quality),
        "label": IntField(),
    }
    writer = DatasetWriter(str(out), fields, page_size=page_size(max_side), num_workers=workers)
    start = time.perf_counter()
    writer.from_indexed_dataset(_RepeatedImageFolder(folder, images))
    return time.perf_counter() - start


class _RepeatedImageFolder:
    """An ImageFolder whose images are repeated until there are `images` of them."""

    def __init__(self, folder: Path, images: int) -> None:
        from torchvision.datasets import ImageFolder

        self.folder, self.images = ImageFolder(folder), images

    def __len__(self) -> int:
        return self.images

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.folder[int(index) % len(self.folder)]
