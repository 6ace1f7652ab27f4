"""Pixels of image files by Pillow, with this project's limits instead of Pillow's."""

import io
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image, PngImagePlugin

from pipelines.beton.layout import MAX_PIXELS

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""Formats that are read, by Pillow's names; rare formats are left out, since their decoders are less well tested."""
MAX_TEXT_BYTES = 1 << 26
"""Maximum size of a PNG's color profile or comments, decompressed, in bytes."""
MAX_SAMPLE_VALUE = 281
"""TIFF's tag of the largest value of a pixel."""
BITS_PER_SAMPLE = 258

_lock = threading.Lock()
_users = 0
_before: tuple[int | None, int, int]


@contextmanager
def our_limits() -> Iterator[None]:
    """Replace Pillow's process-wide limits until the last thread has left such a block, then restore them."""
    global _users, _before
    with _lock:
        if not _users:
            _before = Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY
            # our own limit is checked after opening and before decoding
            Image.MAX_IMAGE_PIXELS = None
            PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = MAX_TEXT_BYTES
        _users += 1
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if not _users:
                Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY = (
                    _before
                )


def open_image(data: bytes) -> Image.Image:
    """Open an image file without decoding it; call it within `our_limits`.

    Raises:
        ValueError: it is not an image of a format that is read, or has too many pixels.
    """
    if not data:
        raise ValueError("the file is empty")
    # Pillow allocates the whole canvas of a WebP when it opens it
    check_pixels(*(_webp_size(data) or (1, 1)))
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.UnidentifiedImageError:
        raise ValueError("no image of a known format") from None
    check_pixels(image.height, image.width)
    return image


def check_pixels(height: int, width: int) -> None:
    """Raise ValueError where an image has more than `MAX_PIXELS` pixels."""
    if height * width > MAX_PIXELS:
        raise ValueError(f"{height}×{width} pixels; up to {MAX_PIXELS} are read")


def to_pixels(image: Image.Image) -> tuple[np.ndarray, str]:
    """Return the pixels of an opened image, uint8 [h, w, 3], without its orientation; and a note on their range.

    Raises:
        ValueError: the range of the pixels is not known.
    """
    if image.mode.startswith("I"):
        return _from_16_bits(image)
    if image.mode == "F":
        raise ValueError("floating-point pixels, whose range is not known; save it with 8 or 16 bits")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return np.asarray(image.convert("RGB")), ""


def _from_16_bits(image: Image.Image) -> tuple[np.ndarray, str]:
    """Return the upper 8 bits of 16-bit gray pixels; Pillow's own conversion would clip them at 255."""
    if image.mode == "I" and image.format == "TIFF":
        raise ValueError("32-bit integer pixels, whose range is not known; save it with 8 or 16 bits")
    bits, note = _significant_bits(image), ""
    values = np.asarray(image)
    largest = int(values.max())
    if bits == 16 and 0 < largest < 1 << 12:
        note = f"16-bit pixels with values below {1 << largest.bit_length()} only: stored nearly black"
    gray = (values >> (bits - 8)).clip(0, 255).astype(np.uint8)
    return np.repeat(gray[:, :, None], 3, axis=2), note


def _significant_bits(image: Image.Image) -> int:
    """Return the number of significant bits, 8 to 16, that a file of 16-bit pixels declares."""
    tags = getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}
    for tag, to_bits in (
        (MAX_SAMPLE_VALUE, lambda value: value.bit_length()),
        (BITS_PER_SAMPLE, lambda value: value),
    ):
        value = tags.get(tag)
        value = value[0] if isinstance(value, tuple) and value else value
        if isinstance(value, int) and 8 <= to_bits(value) < 16:
            return to_bits(value)
    return 16


def _webp_size(data: bytes) -> tuple[int, int] | None:
    """Return height and width from the header of a WebP file; None for any other file."""
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP" or len(data) < 30:
        return None
    if data[12:16] == b"VP8X":
        return int.from_bytes(data[27:30], "little") + 1, int.from_bytes(data[24:27], "little") + 1
    if data[12:16] == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1
    return int.from_bytes(data[28:30], "little") & 0x3FFF, int.from_bytes(data[26:28], "little") & 0x3FFF


@contextmanager
def without_warnings() -> Iterator[None]:
    """Silence Pillow's warnings about irrelevant tags and sizes, for all threads; call it in one thread."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
