"""The common loader: torchvision's SimCLR transforms in a torch DataLoader, over the folder or the same file."""

import io
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.utils.data import ConcatDataset, DataLoader, Dataset

from benchmarks.loaders.peers.jpegs import open_jpegs
from pipelines.beton import Files


def simclr_transform(size: int, augment: bool) -> Callable[[Any], Any]:
    """Return the usual transforms of SimCLR in torchvision, from PIL images to tensors, with the paper's parameters."""
    from torchvision import transforms as T

    crop = [T.RandomResizedCrop(size), T.RandomHorizontalFlip()]
    if not augment:
        return T.Compose([*crop, T.PILToTensor()])
    strength, blur = (
        (0.5, []) if size <= 32 else (1.0, [T.RandomApply([T.GaussianBlur(size // 10 // 2 * 2 + 1)])])
    )
    jitter = T.ColorJitter(0.8 * strength, 0.8 * strength, 0.8 * strength, 0.2 * strength)
    return T.Compose(
        [
            *crop,
            T.RandomApply([jitter], p=0.8),
            T.RandomGrayscale(p=0.2),
            *blur,
            T.ToTensor(),
            T.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )


class TwoCrops:
    """The transform twice, on the decoded image."""

    def __init__(self, transform: Callable[[Any], Any]) -> None:
        self.transform = transform

    def __call__(self, image: Any) -> tuple[Any, Any]:
        return self.transform(image), self.transform(image)


class BetonImages(Dataset):
    """The JPEGs of a `.beton` file, decoded by PIL: the same bytes that the other cases decode."""

    def __init__(self, file: Files, transform: Callable[[Any], Any]) -> None:
        self.reader, self.transform = open_jpegs(file), transform

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        from PIL import Image

        image = Image.open(io.BytesIO(self.reader.image_bytes(index).tobytes())).convert("RGB")
        return self.transform(image), int(self.reader.labels[index])


def loader_of(images: Dataset, batch_size: int, num_workers: int) -> DataLoader:
    """Return a well-configured DataLoader, whose worker processes outlive an epoch."""
    return DataLoader(
        images, batch_size, shuffle=True, drop_last=True, num_workers=num_workers, persistent_workers=True
    )


@dataclass
class TorchvisionLoader:
    """torchvision in a DataLoader with one worker process a core."""

    name: str
    source: Files
    """A folder of class folders; or a `.beton` file, or the list of the files of a set."""
    size: int
    augment: bool
    batch_size: int
    num_workers: int
    repeat_to: int = 0
    """Minimum number of images of an epoch; a small folder is repeated."""
    lacks: str = ""

    def open(self) -> DataLoader:
        from torchvision.datasets import ImageFolder

        transform = TwoCrops(simclr_transform(self.size, self.augment))
        of_folder = isinstance(self.source, Path) and self.source.is_dir()
        images: Any = (ImageFolder if of_folder else BetonImages)(self.source, transform)
        times = max(1, -(-self.repeat_to // len(images)))
        return loader_of(ConcatDataset([images] * times), self.batch_size, self.num_workers)

    def epoch(self, loader: DataLoader) -> Generator[int]:
        for _, labels in loader:
            yield len(labels)
