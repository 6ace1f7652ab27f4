"""ViewSpec: the distributions that views are drawn from."""

import math
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from pipelines.system.renamed import accept_old_fields

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class ViewSpec:
    """The distributions that a view's crop and augmentation are drawn from.

    Order of the operations (SimCLR, arXiv 2002.05709, appendix A): crop and resize, flip, color jitter,
    grayscale, blur, solarization (BYOL, arXiv 2006.07733, appendix B), then normalisation.
    """

    size: int = 224
    """Height and width of a view, pixels."""
    scale: tuple[float, float] = (0.08, 1.0)
    """Fraction of the image's area that a crop covers, uniform."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Width over height of a crop, log-uniform."""
    flip_p: float = 0.5
    """Probability of a horizontal flip."""
    jitter_strength: float = 1.0
    """s: brightness, contrast, saturation factors in [1 − 0.8s, 1 + 0.8s], hue shift in [−0.2s, 0.2s] turns."""
    jitter: tuple[float, float, float, float] | None = None
    """Ranges b, c, s, h in place of a strength: brightness factors in [1 − b, 1 + b], hue shift in [−h, h] turns."""
    jitter_p: float = 0.8
    """Probability of color jitter; its four operations run in a drawn order."""
    gray_p: float = 0.2
    """Probability of grayscale."""
    blur_p: float = 0.5
    """Probability of Gaussian blur."""
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    """Standard deviation of the blur, pixels, uniform."""
    solarize_p: float = 0.0
    """Probability of solarization, after the blur: values x at or above the threshold become 1 − x."""
    solarize_threshold: float = 0.5
    """Threshold of the solarization, on a scale of [0, 1]."""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    """Subtracted from each channel, on a scale of [0, 1]."""
    std: tuple[float, float, float] = IMAGENET_STD
    """Divides each channel, on a scale of [0, 1]."""
    num_views: int = 2
    """Views per image."""
    center_crop_fraction: float | None = None
    """If set, no random crop: the centred square whose side is this fraction of the image's shorter side."""

    def __post_init__(self) -> None:
        for field in fields(self):
            object.__setattr__(self, field.name, _plain(getattr(self, field.name)))

        def check(condition: bool, name: str, what: str) -> None:
            if not condition:
                raise ValueError(f"ViewSpec.{name} is {getattr(self, name)!r}; it must be {what}")

        def is_number(value: Any) -> bool:
            return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)

        for name, count, what in (
            *((name, 2, "two numbers, low and high") for name in ("scale", "ratio", "blur_sigma")),
            *((name, 3, "three finite numbers, one per channel") for name in ("mean", "std")),
            *(
                (name, 4, "None or four numbers, b, c, s and h")
                for name in ("jitter",)
                if self.jitter is not None
            ),
        ):
            value = getattr(self, name)
            check(isinstance(value, tuple) and len(value) == count and all(map(is_number, value)), name, what)
        for name in ("flip_p", "jitter_p", "gray_p", "blur_p", "solarize_p"):
            value = getattr(self, name)
            check(
                is_number(value) and 0 <= value <= 1,
                name,
                "a probability (views that differ: several specs)",
            )
        for name, low, high in (("size", 1, 4096), ("num_views", 1, 16)):
            value = getattr(self, name)
            check(type(value) is int and low <= value <= high, name, f"a whole number, {low} to {high}")
        check(0 < self.scale[0] <= self.scale[1] <= 1, "scale", "two fractions, 0 < low <= high <= 1")
        check(0 < self.ratio[0] <= self.ratio[1], "ratio", "two ratios, 0 < low <= high")
        check(0 < self.blur_sigma[0] <= self.blur_sigma[1], "blur_sigma", "two lengths, 0 < low <= high")
        check(min(self.std) > 0, "std", "positive")
        check(
            is_number(self.jitter_strength) and 0 <= self.jitter_strength <= 2.5,
            "jitter_strength",
            "0 to 2.5 (hue shifts by at most half a turn)",
        )
        if self.jitter is not None:
            check(
                min(self.jitter) >= 0 and self.jitter[3] <= 0.5,
                "jitter",
                "four ranges >= 0, that of hue <= 0.5 turns",
            )
            check(self.jitter_strength == 1, "jitter_strength", "left out where jitter is given")
        fraction = self.center_crop_fraction
        check(
            fraction is None or (is_number(fraction) and 0 < fraction <= 1),
            "center_crop_fraction",
            "None or a fraction, 0 to 1",
        )
        check(
            is_number(self.solarize_threshold) and 0 <= self.solarize_threshold <= 1,
            "solarize_threshold",
            "0 to 1",
        )

    @property
    def jitter_ranges(self) -> tuple[float, float, float, float]:
        """Ranges of brightness, contrast, saturation and hue, as torchvision's ColorJitter takes them."""
        s = self.jitter_strength
        return self.jitter or (0.8 * s, 0.8 * s, 0.8 * s, 0.2 * s)

    @property
    def blur_kernel(self) -> int:
        """Taps of the blur: ⌊size/10⌋ made odd (authors' code: radius = size // 10 // 2)."""
        return 2 * (self.size // 10 // 2) + 1

    @classmethod
    def simclr(cls, size: int = 224, **changes: object) -> "ViewSpec":
        """Return the paper's augmentation; at 32 pixels or less its CIFAR variant: strength 0.5, no blur (B.9).

        >>> ViewSpec.simclr(224).blur_p, ViewSpec.simclr(32).blur_p
        (0.5, 0.0)
        """
        small: dict = {"blur_p": 0.0} if size <= 32 else {}
        if size <= 32 and changes.get("jitter") is None:
            small["jitter_strength"] = 0.5
        return cls(**{"size": size, **small, **changes})

    @classmethod
    def crop_flip(cls, size: int = 224, **changes: object) -> "ViewSpec":
        """Return one view with crop and flip only, for training a linear probe."""
        plain: dict = {"jitter_p": 0.0, "gray_p": 0.0, "blur_p": 0.0, "num_views": 1}
        return cls(**{"size": size, **plain, **changes})

    @classmethod
    def center(cls, size: int = 224, **changes: object) -> "ViewSpec":
        """Return one view for evaluation: the central 0.875 of the image, or all of it at 32 pixels or less."""
        plain: dict = {"flip_p": 0.0, "center_crop_fraction": 0.875 if size > 32 else 1.0}
        return cls.crop_flip(size, **{**plain, **changes})

    @classmethod
    def from_saved(cls, saved: dict[str, Any]) -> "ViewSpec":
        """Return the spec of a saved loader state, recipe or checkpoint, which may have names of version 0.1.

        Raises:
            ValueError: it is no spec, or a value is out of range.
        """
        values = {RENAMED.get(name, name): value for name, value in dict(saved).items()}
        if unknown := values.keys() - {field.name for field in fields(cls)}:
            raise ValueError(f"a ViewSpec has no {', '.join(map(repr, sorted(unknown)))}")
        return cls(**values)


RENAMED = {"views": "num_views", "center_share": "center_crop_fraction"}
"""Names of fields in version 0.1, and their names today."""

accept_old_fields(ViewSpec, RENAMED)


def _plain(value: Any) -> Any:
    """Return Python's numbers, in tuples: a spec is saved as JSON, which has no NumPy numbers."""
    if isinstance(value, (list, tuple, np.ndarray)):
        return tuple(_plain(each) for each in value)
    return value.item() if isinstance(value, np.generic) else value
