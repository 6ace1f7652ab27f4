"""Small `.beton` files of drawn images, sound and damaged, that need no data set."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import simplejpeg

from pipelines.beton import BetonWriter
from pipelines.engines.native import turbojpeg

NUM_SAMPLES = 40


def draw_jpeg(rng: np.random.Generator, height: int, width: int) -> bytes:
    """A smooth color picture with some noise: what JPEG was made for."""
    y, x = np.mgrid[0:height, 0:width] / max(height, width, 2)
    waves = [np.sin(rng.uniform(3, 20) * x + rng.uniform(3, 20) * y + rng.uniform(0, 6)) for _ in range(3)]
    pixels = 127 + 100 * np.stack(waves, -1) + rng.normal(0, 8, (height, width, 3))
    return simplejpeg.encode_jpeg(pixels.clip(0, 255).astype(np.uint8), 90, colorsubsampling="420")


def write_beton(
    path: Path, seed: int, damage: Callable[[int, bytes], bytes] = lambda index, data: data
) -> Path:
    rng = np.random.default_rng(seed)
    with BetonWriter(path, NUM_SAMPLES) as writer:
        for index in range(NUM_SAMPLES):
            height, width = rng.integers(30, 130, 2)
            writer.add_jpeg(damage(index, draw_jpeg(rng, height, width)), label=index % 4)
    return path


def cut(data: bytes) -> bytes:
    """Half a JPEG: its header is whole, its picture is not."""
    return data[: len(data) // 2]


@pytest.fixture(scope="session")
def tiny_beton(tmp_path_factory) -> Path:
    """40 color JPEGs of 30 to 129 pixels, 4 classes."""
    return write_beton(tmp_path_factory.mktemp("beton") / "tiny.beton", seed=0)


@pytest.fixture(scope="session")
def other_beton(tmp_path_factory) -> Path:
    """As many other images."""
    return write_beton(tmp_path_factory.mktemp("beton") / "other.beton", seed=1)


@pytest.fixture(scope="session")
def corrupt_beton(tmp_path_factory) -> Path:
    """`tiny_beton` with sample 4 truncated."""
    path = tmp_path_factory.mktemp("beton") / "corrupt.beton"
    return write_beton(path, 0, lambda index, data: cut(data) if index == 4 else data)


@pytest.fixture(scope="session")
def hopeless_beton(tmp_path_factory) -> Path:
    """`tiny_beton` with every sample truncated."""
    path = tmp_path_factory.mktemp("beton") / "hopeless.beton"
    return write_beton(path, 0, lambda index, data: cut(data))


@pytest.fixture
def only_simplejpeg(monkeypatch):
    """A machine whose system has no libturbojpeg."""
    monkeypatch.setattr(turbojpeg, "LIBRARIES", ("libnothere.so",))
    monkeypatch.setattr(turbojpeg, "_bound", [])
