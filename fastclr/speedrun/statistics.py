"""Tests of a record's accuracy: z-tests with a standard deviation σ that is fixed before the record is run.

A t-test on five seeds would ask for 0.8 points above a target at σ = 0.5 points, the z-test for 0.5.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, mean, stdev

Z = 2.33
"""Minimum z of a record: one-sided p < 0.01."""
MIN_SIGMA = 1e-4
"""Minimum σ: an image among ten thousand."""


@dataclass(frozen=True)
class Sample:
    """Accuracies of the seeds of one recipe, 0 to 1."""

    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Sequence[float]) -> "Sample":
        return cls(tuple(values))

    @property
    def n(self) -> int:
        return len(self.values)

    @property
    def mean(self) -> float:
        return mean(self.values)

    @property
    def sd(self) -> float | None:
        """Standard deviation of a seed, with n − 1; None for one seed."""
        return stdev(self.values) if self.n > 1 else None


def p_value(z: float) -> float:
    """Return the one-sided p of a z.

    >>> round(p_value(2.33), 4)
    0.0099
    """
    return 1 - NormalDist().cdf(z)


def z_of_target(sample: Sample, target: float, sigma: float) -> float:
    """Return z of "the mean exceeds the target": (mean − target)·√n / σ.

    >>> round(z_of_target(Sample((0.505, 0.507, 0.506, 0.505, 0.507)), 0.5, 0.005), 2)
    2.68
    """
    return (sample.mean - target) * math.sqrt(sample.n) / max(sigma, MIN_SIGMA)


def z_of_difference(sample: Sample, previous: Sample, sigma: float) -> float:
    """Return z of "the mean exceeds the previous one": (mean − previous) / (σ·√(1/n₁ + 1/n₂)).

    >>> round(z_of_difference(Sample((0.59,) * 5), Sample((0.58,) * 5), 0.005), 2)
    3.16
    """
    return (sample.mean - previous.mean) / (max(sigma, MIN_SIGMA) * math.sqrt(1 / sample.n + 1 / previous.n))
