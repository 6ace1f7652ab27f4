"""The machine that a result was measured on, and the software."""

import platform
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import psutil

from pipelines.system.cpus import cores
from pipelines.system.versions import git_commit, package_versions, processor_name, vector_extension

PACKAGES = (
    "torch",
    "torchvision",
    "numpy",
    "numba",
    "simplejpeg",
    "pillow",
    "ffcv",
    "nvidia-dali-cuda120",
    "lightly",
    "triton",
    "timm",
    "kornia",
)


@dataclass(frozen=True)
class Machine:
    """The head of a report: hardware, versions, commit and date."""

    date: str = ""
    """Day of the measurement (UTC), e.g. "2026-11-21"."""
    commit: str | None = None
    """Short hash of the checkout, with a "+" if it had changes; None for an installed package."""
    processor: str = ""
    """Model name and widest vector extension, which decides the speed of the kernels."""
    cores: int = 0
    """CPUs that this process may use."""
    memory_gib: int = 0
    gpu: str | None = None
    python: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    """Package → version, of those that are installed."""


def describe_machine() -> Machine:
    """Return the machine and the software of this process."""
    import torch

    commit = git_commit(Path(__file__))
    return Machine(
        date=datetime.now(UTC).strftime("%Y-%m-%d"),
        commit=None if commit is None else commit.hash[:7] + ("+" if commit.changed else ""),
        processor=f"{processor_name()} {vector_extension()}".strip(),
        cores=cores(),
        memory_gib=round(psutil.virtual_memory().total / 2**30),
        gpu=torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        python=platform.python_version(),
        versions=package_versions(*PACKAGES),
    )
