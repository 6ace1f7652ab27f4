"""ViewSpec: the distributions that views are drawn from."""

import math
from dataclasses import dataclass, fields
from numbers import Integral
from typing import Any

import numpy as np

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class ViewSpec:
    """What a view looks like, as distributions.

    Order of the operations (SimCLR, arXiv 2002.05709, appendix A): crop and resize, flip, color jitter,
    grayscale, blur, then normalisation.
    """

    size: int = 224
    """Height and width of a view, pixels."""
    scale: tuple[float, float] = (0.08, 1.0)
    """Share of the image's area that a crop covers, uniform."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Width over height of a crop, log-uniform."""
    flip_p: float = 0.5
    """Probability of a horizontal flip."""
    jitter_strength: float = 1.0
    """s: brightness, contrast, saturation factors in [1 − 0.8s, 1 + 0.8s], hue shift in [−0.2s, 0.2s] turns."""
    jitter_p: float = 0.8
    """Probability of color jitter; its four operations run in a drawn order."""
    gray_p: float = 0.2
    """Probability of grayscale."""
    blur_p: float = 0.5
    """Probability of Gaussian blur."""
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    """Standard deviation of the blur, pixels, uniform."""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    """Subtracted from each channel, on a scale of [0, 1]."""
    std: tuple[float, float, float] = IMAGENET_STD
    """Divides each channel, on a scale of [0, 1]."""
    views: int = 2
    """Views per image."""
    center_share: float | None = None
    """If set, no random crop: the centred square whose side is this share of the image's shorter side."""

    def __post_init__(self) -> None:
        for field in fields(self):
            object.__setattr__(self, field.name, _plain(getattr(self, field.name)))

        def need(condition: bool, name: str, what: str) -> None:
            if not condition:
                raise ValueError(f"ViewSpec.{name} is {getattr(self, name)!r}; it must be {what}")

        need(isinstance(self.size, Integral) and 1 <= self.size <= 4096, "size", "between 1 and 4096 pixels")
        need(0 < self.scale[0] <= self.scale[1] <= 1, "scale", "two shares, 0 < low <= high <= 1")
        need(0 < self.ratio[0] <= self.ratio[1], "ratio", "two ratios, 0 < low <= high")
        for name in ("flip_p", "jitter_p", "gray_p", "blur_p"):
            need(0 <= getattr(self, name) <= 1, name, "a probability, 0 to 1")
        need(
            0 <= self.jitter_strength <= 2.5,
            "jitter_strength",
            "0 to 2.5 (hue shifts by at most half a turn)",
        )
        need(0 < self.blur_sigma[0] <= self.blur_sigma[1], "blur_sigma", "two lengths, 0 < low <= high")
        for name in ("mean", "std"):
            numbers = getattr(self, name)
            need(len(numbers) == 3 and all(map(math.isfinite, numbers)), name, "three finite numbers")
        need(min(self.std) > 0, "std", "positive")
        need(isinstance(self.views, Integral) and 1 <= self.views <= 16, "views", "1 to 16")
        need(
            self.center_share is None or 0 < self.center_share <= 1, "center_share", "None or a share, 0 to 1"
        )

    @property
    def blur_kernel(self) -> int:
        """Taps of the blur: ⌊size/10⌋ made odd (authors' code: radius = size // 10 // 2)."""
        return 2 * (self.size // 10 // 2) + 1

    @classmethod
    def simclr(cls, size: int = 224, **changes: object) -> "ViewSpec":
        """The paper's augmentation; at 32 pixels or less its CIFAR variant: strength 0.5, no blur (B.9).

        >>> ViewSpec.simclr(224).blur_p, ViewSpec.simclr(32).blur_p
        (0.5, 0.0)
        """
        small: dict = {"jitter_strength": 0.5, "blur_p": 0.0} if size <= 32 else {}
        return cls(**{"size": size, **small, **changes})

    @classmethod
    def crop_flip(cls, size: int = 224, **changes: object) -> "ViewSpec":
        """One view with crop and flip only: for training a linear probe."""
        plain: dict = {"jitter_p": 0.0, "gray_p": 0.0, "blur_p": 0.0, "views": 1}
        return cls(**{"size": size, **plain, **changes})

    @classmethod
    def center(cls, size: int = 224, **changes: object) -> "ViewSpec":
        """One view for evaluation: the central 0.875 of the image; all of it at 32 pixels or less."""
        plain: dict = {"flip_p": 0.0, "center_share": 0.875 if size > 32 else 1.0}
        return cls.crop_flip(size, **{**plain, **changes})


def _plain(value: Any) -> Any:
    """Numbers of Python, in tuples: a spec is saved as JSON, which knows none of NumPy's."""
    if isinstance(value, (list, tuple, np.ndarray)):
        return tuple(_plain(each) for each in value)
    return value.item() if isinstance(value, np.generic) else value
