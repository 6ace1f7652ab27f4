"""What differs between the stages of a run: the size of its views."""

from dataclasses import dataclass
from itertools import groupby

from fastclr.config import Config
from fastclr.optim import num_steps
from fastclr.schedule import num_loader_epochs
from fastclr.train.build import views_of_epoch


@dataclass(frozen=True)
class Stage:
    """Successive steps of a run whose views have one size."""

    size: int
    """Pixels of a view."""
    fraction: float
    """Fraction of the steps, 0 to 1."""


def stages(config: Config, num_images: int) -> tuple[Stage, ...]:
    """Return the stages of a run on a number of images, in their order."""
    batch = config.train.batch_size
    total = num_steps(num_images, config.train.epochs, batch)
    left, steps = total, []
    for epoch in range(num_loader_epochs(num_images, config.train.epochs, batch)):
        taken = min(left, num_images // batch)
        left -= taken
        steps.append((views_of_epoch(config, num_images, epoch)[0].size, taken))
    assert left == 0, "the epochs of the loader have all steps"
    return tuple(
        Stage(size, sum(taken for _, taken in same) / total)
        for size, same in groupby(steps, key=lambda each: each[0])
    )
