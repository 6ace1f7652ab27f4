"""What differs between the stages of a run: the size of its views; and the size that its encoder is tested at."""

from dataclasses import dataclass

from fastclr.config import Config


@dataclass(frozen=True)
class Stage:
    """Part of a run whose views have one size."""

    size: int
    """Pixels of a view."""
    fraction: float
    """Fraction of the epochs, 0 to 1."""


def stages(config: Config) -> tuple[Stage, ...]:
    """Return the stages of a run, in their order: one, as all views of a recipe have one size."""
    return (Stage(config.view_size, 1.0),)


def test_size(config: Config) -> int:
    """Return the pixels of the image that the encoder is tested on: those of a view in training."""
    return config.view_size


test_size.__test__ = False  # type: ignore[attr-defined]  # pytest takes the name for a test
