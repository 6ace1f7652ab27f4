"""What a measurement was made on."""

import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from pipelines.system.cpus import cores

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


def describe() -> dict[str, Any]:
    """Processor, memory, versions, commit and date, for the head of a result."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "commit": _commit(),
        "processor": _processor(),
        "cores": cores(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "gpu": _gpu(),
        "python": platform.python_version(),
        "versions": {name: found for name in PACKAGES if (found := _version(name))},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    """The model name, and the widest vectors that it has: they decide how fast the kernels run."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    entries = dict(line.split(":", 1) for line in lines if ":" in line)
    name = next(
        (value.strip() for key, value in entries.items() if key.strip() == "model name"), platform.machine()
    )
    flags = next((value.split() for key, value in entries.items() if key.strip() == "flags"), [])
    vectors = next((wide for wide in ("avx512bw", "avx2") if wide in flags), "")
    return f"{name} {vectors}".strip()


def _gpu() -> str | None:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def _commit() -> str | None:
    """Short hash of the checkout that runs, with a + where it has changes; None for an installed package."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, check=False)
        except OSError:
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "--short", "HEAD")
    if commit is None:
        return None
    changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", "../pipelines", "../fastclr")
    return commit + ("+" if changed else "")
