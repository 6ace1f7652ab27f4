"""What the loader benchmarks find, as typed reports."""

from dataclasses import dataclass, field

from benchmarks.core.harness import LoaderRow
from benchmarks.core.machine import Machine

WORKLOADS = {"crops": "two crops", "full": "full augmentation", "center": "one center crop"}
"""What a loader gives for an image: two uint8 crops, two augmented float32 views, or an evaluation's uint8 crop."""


@dataclass(frozen=True)
class StoredAs:
    """Options that the file was converted with; None where no side-car tells."""

    mode: str | None = None
    jpeg: str | None = None
    max_side: int | None = None
    quality: int | None = None
    restart: str | None = None


@dataclass(frozen=True)
class FileFacts:
    """What the figures depend on: how large the images are, and how they were stored."""

    name: str
    images: int
    bytes: int
    """Size of the file."""
    median_longer_side: int
    """Pixels."""
    convert: StoredAs = field(default_factory=StoredAs)


@dataclass(frozen=True)
class LoaderSettings:
    """What all cases have in common."""

    size: int
    """Height and width of a view, pixels."""
    threads: int
    """Threads, or worker processes, of every case."""
    batch_size: int


@dataclass(frozen=True)
class LoaderReport:
    """Loaders side by side."""

    machine: Machine
    file: FileFacts
    settings: LoaderSettings
    decode_limit: LoaderRow
    results: dict[str, list[LoaderRow]]
    """Rows of each of `WORKLOADS` that was measured."""
    benchmark: str = "loader"


@dataclass(frozen=True, kw_only=True)
class ScalingRow(LoaderRow):
    """A line's rate on a number of threads."""

    threads: int


@dataclass(frozen=True)
class ScalingReport:
    """How rates grow with the number of threads."""

    machine: Machine
    file: FileFacts
    settings: LoaderSettings
    rows: dict[str, list[ScalingRow]]
    """Line → one row for each number of threads."""
    relative_scaling: dict[str, float]
    """Line → its growth from one thread to all, relative to that of the decode limit; 1 loses nothing."""
    benchmark: str = "loader scaling"


@dataclass(frozen=True)
class AgreementSettings:
    """What was compared."""

    device: str
    size: int = 0
    """Height and width of a view, pixels."""
    views: int = 0
    images: int = 0


@dataclass(frozen=True)
class AgreementRow:
    """How far an engine's crops are from torchvision's, in gray levels."""

    name: str
    error: str = ""
    """Why it was not compared."""
    inside: int = 0
    """Largest difference, the outermost row and column of pixels left out."""
    ring: int = 0
    """Largest difference in the outermost rows and columns."""
    mean: float = 0.0
    """Mean difference of all pixels."""


@dataclass(frozen=True)
class AgreementReport:
    """Engines compared with torchvision."""

    machine: Machine
    settings: AgreementSettings
    results: list[AgreementRow]
    benchmark: str = "agreement"
