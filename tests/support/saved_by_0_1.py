"""What version 0.1 saved (`tests/fixtures/v0.1`): unpacking it, and its checksum of drawn numbers."""

import gzip
import hashlib
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np

from pipelines import ViewParams

FIXTURES = Path(__file__).parents[1] / "fixtures" / "v0.1"
PARAM_FIELDS = ("box", "flip", "jitter", "jitter_order", "jitter_factors", "grayscale", "blur_sigma")
"""Fields of `ViewParams` that version 0.1 had, by their names of today."""


def unpack_images(folder: Path) -> Path:
    """Write `images.beton` into a folder; returns its path."""
    path = folder / "images.beton"
    path.write_bytes(gzip.decompress((FIXTURES / "images.beton.gz").read_bytes()))
    return path


def unpack_run(folder: Path) -> Path:
    """Write the run folder `run` into a folder; returns its path."""
    with tarfile.open(FIXTURES / "run.tar.xz") as tar:
        tar.extractall(folder, filter="data")
    return folder / "run"


def loader_states() -> list[dict[str, Any]]:
    return json.loads((FIXTURES / "loader_states.json").read_text())


def following_metrics() -> list[dict[str, Any]]:
    """Records of the steps that follow the run's checkpoint."""
    return [json.loads(line) for line in (FIXTURES / "following_metrics.jsonl").read_text().splitlines()]


def drawn_checksum(params: ViewParams) -> str:
    """Checksum of the drawn numbers: types, shapes and bytes of the fields that version 0.1 had."""
    digest = hashlib.sha256()
    for name in PARAM_FIELDS:
        array = np.ascontiguousarray(getattr(params, name))
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()[:16]
