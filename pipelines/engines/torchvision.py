"""The torchvision engine: PIL and torchvision's functional transforms in a torch DataLoader.

The readable baseline: the other engines must produce its crops, and their speed is compared with its speed.
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
from pipelines.contracts import BatchPlan, Crops, Planner
from pipelines.engines.corrupt import MAX_CORRUPT, CorruptSamples
from pipelines.views import ViewParams


@dataclass(frozen=True)
class Item:
    """A request to a worker process."""

    epoch: int
    index: int
    params: ViewParams
    """The sample's numbers, arrays [V, 1, …]."""


@dataclass(frozen=True)
class Sample:
    """The answer of a worker process."""

    index: int
    params: ViewParams
    crops: list[np.ndarray] | None
    """uint8 [V_g, H_g, W_g, 3] for each group; None where too many samples in a row are corrupt."""
    corrupt: dict[int, str]
    """Corrupt samples that this one replaces, with the reasons."""


class TorchvisionEngine:
    """Decodes with PIL and crops with `resized_crop` in the worker processes of a DataLoader.

    A corrupt sample is replaced as in the native engine.

    Args:
        reader: the file; every worker opens its own.
        planner: says which samples are in use.
        num_threads: worker processes, each with one thread.
        device: not used; the crops lie on the host.
        augment: not used; the crops are augmented behind the engine.

    Raises:
        ValueError: from the iterator of `run`, when more than 100 samples are corrupt.
    """

    def __init__(
        self,
        reader: BetonReader,
        planner: Planner,
        *,
        num_threads: int,
        device: torch.device | str = "cpu",
        augment: bool | None = None,
    ) -> None:
        self.reader, self.num_threads = reader, num_threads
        self.corrupt = CorruptSamples(reader.path, planner.num_samples)

    def run(self, plans: Iterator[BatchPlan], planner: Planner) -> Generator[Crops]:
        underway: deque[BatchPlan] = deque()

        def batches() -> Iterator[list[Item]]:
            for plan in plans:
                underway.append(plan)
                yield [
                    Item(plan.epoch, int(index), plan.params[:, row : row + 1])
                    for row, index in enumerate(plan.indices)
                ]

        # imported here, so that the worker processes need not import it
        import torchvision.transforms.v2.functional  # noqa: F401

        loader = DataLoader(
            CropsDataset(self.reader, planner),
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
                    plan.replace_row(row, sample.index, sample.params)
            per_group = zip(*(sample.crops for sample in samples), strict=True)
            yield Crops(plan, tuple(np.stack(crops, axis=1) for crops in per_group))

    def close(self) -> None:
        """Do nothing: the engine holds nothing between runs."""


class CropsDataset(Dataset):
    """Makes the Sample that an Item asks for, in a worker process."""

    def __init__(self, reader: BetonReader, planner: Planner) -> None:
        self.reader, self.planner = reader, planner

    def __getitem__(self, item: Item) -> Sample:
        index, params = item.index, item.params
        corrupt: dict[int, str] = {}
        while len(corrupt) <= min(MAX_CORRUPT, self.planner.num_samples - 1):
            try:
                image = self._decode(index)
                break
            except MemoryError:
                raise
            # PIL raises OSError, SyntaxError and others for corrupt files
            except Exception as error:
                prefix = f"{self.reader.where(index)}: "
                corrupt[index] = prefix + str(error).removeprefix(prefix)
            index = self.planner.replacement_for(index)
            params = self.planner.draw(item.epoch, np.array([index]))
        else:  # too many: `CorruptSamples` says so in one line, which an error of a worker process is not
            return Sample(index, params, None, corrupt)
        crops = [
            np.stack(
                [
                    _crop(image, box, flip, group.size)
                    for box, flip in zip(params.box[group.views, 0], params.flip[group.views, 0], strict=True)
                ]
            )
            for group in self.planner.groups
        ]
        return Sample(index, params, crops, corrupt)

    def _decode(self, index: int) -> torch.Tensor:
        """Return the image, uint8 [3, h, w]."""
        if self.reader.is_jpeg(index):
            self.reader.check_header(index)
            with Image.open(io.BytesIO(self.reader.image_bytes(index).tobytes())) as image:
                pixels = np.array(image.convert("RGB"))
        else:
            pixels = self.reader[index][0]
        return torch.from_numpy(pixels).permute(2, 0, 1)


def _crop(image: torch.Tensor, box: np.ndarray, flip: bool, size: int) -> np.ndarray:
    """Return one view, uint8 [size, size, 3], of an image [3, h, w]."""
    # the import takes seconds, so it is done only when this engine is used
    from torchvision.transforms.v2 import functional

    crop = functional.resized_crop(image.float(), *box.tolist(), [size, size], antialias=True)
    crop = functional.horizontal_flip(crop) if flip else crop
    return crop.round().to(torch.uint8).permute(1, 2, 0).numpy()
