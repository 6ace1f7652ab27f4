"""Stock FFCV: its own Loader with two pipelines on the image field, which decodes every image twice."""

from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.errors import EngineUnavailable


@dataclass
class FfcvLoader:
    """FFCV's decoder, crop and flip, and of the augmentation those operations that FFCV 1.0.2 has."""

    name: str
    file: Path
    size: int
    augment: bool
    batch_size: int
    num_threads: int

    @property
    def lacks(self) -> str:
        return "hue, random order of the jitter, grayscale, blur" if self.augment else ""

    def open(self) -> Any:
        from pipelines.engines.ffcv.engine import INSTALL

        try:
            from ffcv.loader import Loader, OrderOption
        except (ImportError, OSError) as error:
            raise EngineUnavailable(f"needs the package ffcv ({error}): {INSTALL}") from error
        import numba

        return Loader(
            str(self.file),
            batch_size=self.batch_size,
            num_workers=min(self.num_threads, numba.config.NUMBA_NUM_THREADS),
            order=OrderOption.RANDOM,
            drop_last=True,
            pipelines=self._pipelines(),
        )

    def epoch(self, loader: Any) -> Generator[int]:
        # the stock loader's own iterator, but one that ends FFCV's thread when the epoch is dropped half way
        from pipelines.engines.ffcv.loader import drive

        for batch in drive(loader):
            yield len(batch[0])

    def _pipelines(self) -> dict[str, Any]:
        from ffcv.fields.basics import IntDecoder
        from ffcv.pipeline import PipelineSpec
        from ffcv.transforms import Squeeze, ToTensor

        return {
            "image": PipelineSpec("image", decoder=self._decoder(), transforms=self._transforms()),
            "second": PipelineSpec("image", decoder=self._decoder(), transforms=self._transforms()),
            "label": [IntDecoder(), ToTensor(), Squeeze()],
        }

    def _decoder(self) -> Any:
        from ffcv.fields.rgb_image import RandomResizedCropRGBImageDecoder

        return RandomResizedCropRGBImageDecoder((self.size, self.size))

    def _transforms(self) -> list[Any]:
        import numpy as np
        from ffcv import transforms as T

        jitter, normalize = [], []
        if self.augment:
            strength = 0.4 if self.size <= 32 else 0.8
            jitter = [
                T.RandomBrightness(strength, p=0.8),
                T.RandomContrast(strength, p=0.8),
                T.RandomSaturation(strength, p=0.8),
            ]
            mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
            normalize = [T.NormalizeImage(255 * mean, 255 * std, np.float32)]
        return [T.RandomHorizontalFlip(), *jitter, *normalize, T.ToTensor(), T.ToTorchImage()]
