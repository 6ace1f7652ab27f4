"""JPEG files of every kind that a baseline encoder writes, drawn or taken from photos."""

import io

import numpy as np
import simplejpeg
from PIL import Image

SUBSAMPLINGS = ("444", "422", "420", "440", "411", "gray")


def draw_pixels(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """uint8 [height, width, 3]: waves of color with noise, so that no two blocks are alike."""
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    waves = [np.sin(rng.uniform(3, 20) * x + rng.uniform(3, 20) * y + rng.uniform(0, 6)) for _ in range(3)]
    pixels = 127 + 100 * np.stack(waves, -1) + rng.normal(0, 8, (height, width, 3))
    return pixels.clip(0, 255).astype(np.uint8)


def encode(pixels: np.ndarray, subsampling: str, quality: int = 90) -> bytes:
    """A baseline JPEG with the typical Huffman tables."""
    if subsampling == "gray":
        return simplejpeg.encode_jpeg(pixels[:, :, :1].copy(), quality, "GRAY", "Gray")
    return simplejpeg.encode_jpeg(pixels, quality, colorsubsampling=subsampling)


def save(pixels: np.ndarray, **options: object) -> bytes:
    """A JPEG as Pillow writes it with these options (optimize, progressive, restart_marker_blocks, exif …)."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", **options)
    return out.getvalue()
