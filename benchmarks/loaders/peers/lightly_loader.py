"""lightly's `SimCLRTransform` in a torch DataLoader, over the same JPEGs."""

from collections.abc import Generator
from dataclasses import dataclass

from torch.utils.data import DataLoader

from benchmarks.loaders.peers.torchvision_loader import BetonImages, loader_of
from pipelines.beton import Files
from pipelines.errors import EngineUnavailable


@dataclass
class LightlyLoader:
    """The loader of lightly's documentation; it always augments fully, because its transform does."""

    name: str
    file: Files
    size: int
    batch_size: int
    num_workers: int
    lacks: str = ""

    def open(self) -> DataLoader:
        try:
            from lightly.transforms import SimCLRTransform
        except ImportError as error:
            raise EngineUnavailable(f"needs the package lightly ({error}): pip install lightly") from error

        small = self.size <= 32  # CIFAR: half the jitter and no blur, as in the paper
        transform = SimCLRTransform(
            input_size=self.size, cj_strength=0.5 if small else 1.0, gaussian_blur=0.0 if small else 0.5
        )
        return loader_of(BetonImages(self.file, transform), self.batch_size, self.num_workers)

    def epoch(self, loader: DataLoader) -> Generator[int]:
        for _, labels in loader:
            yield len(labels)
