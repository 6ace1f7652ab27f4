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


def resized_header(jpeg: bytes, height: int, width: int) -> bytes:
    """Return a JPEG with another size in its header."""
    at = 2
    while not 0xC0 <= jpeg[at + 1] <= 0xC2:
        at += 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
    size = height.to_bytes(2, "big") + width.to_bytes(2, "big")
    return jpeg[: at + 5] + size + jpeg[at + 9 :]


def many_scans(side: int, scans: int) -> bytes:
    """A progressive JPEG whose scans hold nothing, each of which takes as long as decoding the whole image."""
    jpeg = resized_header(save(np.zeros((16, 16, 3), np.uint8), progressive=True), side, side)
    table = b"\xff\xc4\x00\x14\x10\x01" + bytes(15) + b"\xe0"
    scan = b"\xff\xda\x00\x08\x01\x01\x00\x01\x3f\x00"
    return jpeg[: jpeg.find(b"\xff\xda")] + table + scan * scans + b"\xff\xd9"
