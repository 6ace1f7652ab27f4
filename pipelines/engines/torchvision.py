"""The torchvision engine: PIL and torchvision's functional transforms in a torch DataLoader.

The readable baseline: what the other engines must equal, at the speed that everybody knows.
"""

import io
from collections import deque
from collections.abc import Generator, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from pipelines.beton import BetonReader
from pipelines.contracts import BatchPlan, Crops
from pipelines.engines.corrupt import MAX_CORRUPT, CorruptSamples
from pipelines.planner import Sampler
from pipelines.views import ViewParams


@dataclass(frozen=True)
class Item:
    """What a worker process is asked for."""

    epoch: int
    index: int
    params: ViewParams
    """The sample's numbers, arrays [V, 1, …]."""


@dataclass(frozen=True)
class Sample:
    """What it answers."""

    index: int
    params: ViewParams
    crops: np.ndarray | None
    """uint8 [V, H, W, 3]; None, if no sound sample was found among as many as are replaced."""
    corrupt: dict[int, str]
    """Samples that this one stands in for, with the reason."""


class TorchvisionEngine:
    """Decodes with PIL and crops with `resized_crop` in the worker processes of a DataLoader.

    A corrupt sample is replaced as in the native engine.

    Args:
        reader: the file; every worker opens its own.
        sampler: draws the numbers of a replacement, and gives the views' spec.
        num_threads: worker processes, each with one thread.
        device: not used; the crops lie on the host.

    Raises:
        ValueError: from the iterator of `run`, when more than 100 samples are corrupt.
    """

    def __init__(
        self, reader: BetonReader, sampler: Sampler, num_threads: int, device: torch.device | str = "cpu"
    ) -> None:
        self.reader, self.sampler, self.num_threads = reader, sampler, num_threads
        self.corrupt = CorruptSamples(reader.path, sampler.num_samples)

    def run(self, plans: Iterator[BatchPlan]) -> Generator[Crops]:
        underway: deque[BatchPlan] = deque()

        def batches() -> Iterator[list[Item]]:
            for plan in plans:
                underway.append(plan)
                yield [
                    Item(plan.epoch, int(index), plan.params[:, row : row + 1])
                    for row, index in enumerate(plan.indices)
                ]

        import torchvision.transforms.v2.functional  # noqa: F401  # here, so that no worker has to

        loader = DataLoader(
            TwoViewDataset(self.reader, self.sampler),
            batch_sampler=batches(),
            num_workers=self.num_threads,
            collate_fn=list,
        )
        for samples in loader:
            plan = underway.popleft()
            if any(sample.corrupt for sample in samples):
                plan = plan.copy()
                for row, sample in enumerate(samples):
                    for index, reason in sample.corrupt.items():
                        self.corrupt.add(index, reason)
                    plan.put(row, sample.index, sample.params)
            yield Crops(plan, np.stack([sample.crops for sample in samples], axis=1))

    def close(self) -> None:
        """Nothing is held between runs."""


class TwoViewDataset(Dataset):
    """Answers an Item with a Sample, in a worker process."""

    def __init__(self, reader: BetonReader, sampler: Sampler) -> None:
        self.reader, self.sampler = reader, sampler

    def __getitem__(self, item: Item) -> Sample:
        index, params = item.index, item.params
        corrupt: dict[int, str] = {}
        while len(corrupt) <= min(MAX_CORRUPT, self.sampler.num_samples - 1):
            try:
                image = self._decode(index)
                break
            except MemoryError:
                raise
            # PIL raises OSError, SyntaxError and others for corrupt files
            except Exception as error:
                prefix = f"{self.reader.path}: sample {index}: "
                corrupt[index] = prefix + str(error).removeprefix(prefix)
            index = self.sampler.successor(index)
            params = self.sampler.draw(item.epoch, np.array([index]))
        else:  # too many: `CorruptSamples` says so in one line, which an error of a worker process is not
            return Sample(index, params, None, corrupt)
        crops = [
            self._crop(image, box, flip)
            for box, flip in zip(params.box[:, 0], params.flip[:, 0], strict=True)
        ]
        return Sample(index, params, np.stack(crops), corrupt)

    def _decode(self, index: int) -> torch.Tensor:
        """uint8 [3, h, w]."""
        if self.reader.is_jpeg(index):
            self.reader.check_header(index)
            with Image.open(io.BytesIO(self.reader.image_bytes(index).tobytes())) as image:
                pixels = np.array(image.convert("RGB"))
        else:
            pixels = self.reader[index][0]
        return torch.from_numpy(pixels).permute(2, 0, 1)

    def _crop(self, image: torch.Tensor, box: np.ndarray, flip: bool) -> np.ndarray:
        from torchvision.transforms.v2 import functional  # takes seconds, which only users of this engine pay

        size = self.sampler.spec.size
        crop = functional.resized_crop(image.float(), *box.tolist(), [size, size], antialias=True)
        crop = functional.horizontal_flip(crop) if flip else crop
        return crop.round().to(torch.uint8).permute(1, 2, 0).numpy()
