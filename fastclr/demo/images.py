"""Images for the demo from a folder of the user: splits it into training and test images."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipelines.convert import Source, open_source

TEST_SHARE = 0.2
"""Fraction of the user's images that is held out."""
MAX_IMAGES = 20_000
"""Maximum number of images; of a larger folder so many are taken at random, to keep the demo short."""
MIN_IMAGES = 20
"""Minimum number of images in a folder."""
TRAIN_NAMES = ("train", "training")
TEST_NAMES = ("test", "val", "valid", "validation")


@dataclass(eq=False)
class Subset:
    """A source with some of the images of another source."""

    whole: Source
    numbers: np.ndarray
    """int64: the numbers of its images in the whole."""

    def __post_init__(self) -> None:
        self.kind, self.class_names, self.remarks = (
            self.whole.kind,
            self.whole.class_names,
            self.whole.remarks,
        )
        self.name = f"{len(self.numbers)} images of {self.whole.name}"
        self.labels = self.whole.labels[self.numbers]

    def item(self, index: int) -> str:
        return self.whole.item(int(self.numbers[index]))

    def read(self, index: int) -> bytes | np.ndarray:
        return self.whole.read(int(self.numbers[index]))


def split_folder(folder: Path, seed: int = 0) -> tuple[Source, Source]:
    """Split the user's folder into training and test images.

    If the folder holds folders `train` and `test` (or `val`), this split is used.  Otherwise a fifth of the images,
    drawn at random, is held out.

    Args:
        folder: class folders, a flat folder, or train and test folders of either kind.
        seed: decides which images are held out.

    Raises:
        OSError: no such folder.
        ValueError: no images, or too few.
    """
    if not folder.is_dir():
        raise NotADirectoryError(
            f"{folder} is not a folder; the demo takes a folder of images, or one folder per class"
        )
    parts = {path.name.lower(): path for path in sorted(folder.iterdir()) if path.is_dir()}
    train = next((parts[name] for name in TRAIN_NAMES if name in parts), None)
    test = next((parts[name] for name in TEST_NAMES if name in parts), None)
    rng = np.random.default_rng(seed)
    if train and test:
        sources = open_source([str(train)]), open_source([str(test)])
        chosen = tuple(rng.permutation(len(source.labels)) for source in sources)
    else:
        whole = open_source([str(folder)])
        order = rng.permutation(len(whole.labels))[:MAX_IMAGES]
        cut = round(TEST_SHARE * len(order))
        sources, chosen = (whole, whole), (order[cut:], order[:cut])
    if min(map(len, chosen)) < 1 or sum(map(len, chosen)) < MIN_IMAGES:
        raise ValueError(
            f"{folder} holds {sum(map(len, chosen))} images; the demo needs at least {MIN_IMAGES}"
        )
    train_part, test_part = (
        Subset(source, np.sort(numbers[:limit]))
        for source, numbers, limit in zip(sources, chosen, (MAX_IMAGES, MAX_IMAGES // 4), strict=True)
    )
    return train_part, test_part
