"""What is stored of an image: the file as it is, a new JPEG, or its pixels."""

import io
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import simplejpeg
from PIL import Image

from pipelines.beton.layout import MAX_PIXELS, MAX_SIDE, page_size

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""Formats that are read, by Pillow's names; the exotic ones have the exotic bugs."""


@dataclass(frozen=True)
class Encoding:
    """How images are stored.

    Raises:
        ValueError: a value out of its range.
    """

    jpeg: Literal["keep", "recompress"] = "keep"
    """"keep": store a baseline JPEG of up to --max-side byte for byte; "recompress": encode all anew, as FFCV does."""
    mode: Literal["jpg", "raw"] = "jpg"
    """"jpg": JPEG files; "raw": decoded pixels, about ten times as large and without a decoder's cost."""
    max_side: int = 500
    """Longer side of a stored image, pixels; larger ones are resized to it (Lanczos, antialiased)."""
    quality: int = 90
    """JPEG quality of images that are encoded anew, 1 to 100; chroma is always 4:2:0."""
    verify: Literal["full", "header"] = "full"
    """"full": decode every JPEG, strictly, before it is stored; "header": read its header only."""

    def __post_init__(self) -> None:
        if not 1 <= self.max_side <= MAX_SIDE:
            raise ValueError(f"max_side must be 1 to {MAX_SIDE} pixels, got {self.max_side}")
        if not 1 <= self.quality <= 100:
            raise ValueError(f"quality must be 1 to 100, got {self.quality}")


class Stored(NamedTuple):
    """What is stored of an image."""

    image: bytes | np.ndarray
    """A JPEG file, or uint8 [h, w, 3] pixels."""
    kept: bool
    """Whether it is the source's file, byte for byte."""
    note: str = ""
    """Why the image could not be kept, or what was odd about it."""


def encode(image: bytes | np.ndarray, encoding: Encoding) -> Stored:
    """What to store of an image.

    Args:
        image: an image file's bytes, or uint8 [h, w, 3] RGB pixels.

    Raises:
        ValueError: it is no image, is damaged, or is of a kind that is not read.
    """
    note = ""
    if encoding.mode == "jpg" and encoding.jpeg == "keep":
        note = _obstacle(image, encoding)
        if not note:
            assert isinstance(image, bytes)
            return Stored(image, kept=True)
    if isinstance(image, bytes):
        image, oddity = _pixels(image)
        note = note or oddity
    image = _fit(image, encoding.max_side)
    if encoding.mode == "raw":
        return Stored(image, False, note)
    jpeg = simplejpeg.encode_jpeg(image, encoding.quality, colorspace="RGB", colorsubsampling="420")
    if encoding.verify == "full":
        simplejpeg.decode_jpeg(jpeg)
    return Stored(jpeg, False, note)


def _obstacle(image: bytes | np.ndarray, encoding: Encoding) -> str:
    """Why an image cannot be stored as it is; "" when it can."""
    if not isinstance(image, bytes):
        return "pixels"
    coding = _jpeg_coding(image)
    if coding is None:
        return "not JPEG"
    if coding != "baseline":
        return f"{coding} JPEG"
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(image)
        if colorspace not in ("YCbCr", "Gray"):
            return f"{colorspace} JPEG"
        if max(height, width) > encoding.max_side:
            return f"longer side over {encoding.max_side} pixels"
        if height * width > MAX_PIXELS:
            return f"over {MAX_PIXELS} pixels"
        if len(image) > page_size(encoding.max_side):
            return "file larger than a page"
        if encoding.verify == "full":
            simplejpeg.decode_jpeg(image)
    except ValueError as error:
        return f"strict decoding refuses it: {error}"
    return ""


_FRAMES = {
    0xC0: "baseline",
    0xC1: "extended",
    0xC2: "progressive",
    0xC3: "lossless",
    0xC9: "arithmetic-coded",
    0xCA: "arithmetic-coded",
}


def _jpeg_coding(data: bytes) -> str | None:
    """How a JPEG is coded ("baseline" means 8 bits, Huffman, sequential); None where there is no frame.

    Walks the marker segments to the frame header (ITU-T T.81, annex B): a few microseconds.
    """
    if data[:2] != b"\xff\xd8":
        return None
    at, end = 2, len(data) - 4
    while 0 <= at < end:
        marker = data[at + 1]
        if data[at] != 0xFF or marker == 0xFF:  # padding, or junk that decoders skip
            at = data.find(b"\xff", at + 1)
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            coding = _FRAMES.get(marker, "unusual")
            return coding if data[at + 4] == 8 else f"{data[at + 4]}-bit"
        elif marker == 0xDA:  # a scan before any frame
            return None
        else:
            at += 2 + (data[at + 2] << 8 | data[at + 3])
    return None


def _pixels(data: bytes) -> tuple[np.ndarray, str]:
    """Pixels of an image file, uint8 [h, w, 3], orientation tags ignored; and what was odd about the file."""
    oddity = ""
    if data[:2] == b"\xff\xd8":
        try:
            height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
            if colorspace in ("YCbCr", "Gray") and height * width <= MAX_PIXELS:
                return simplejpeg.decode_jpeg(data), ""
        except ValueError as error:
            oddity = f"strict decoding refuses it: {error}"
    return _pillow_pixels(data), oddity


def _pillow_pixels(data: bytes) -> np.ndarray:
    if not data:
        raise ValueError("the file is empty")
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.UnidentifiedImageError:
        raise ValueError("no image of a known format") from None
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(f"{image.height}×{image.width} pixels; up to {MAX_PIXELS} are read")
    if image.mode.startswith("I"):  # 16 bits of gray; Pillow's own conversion would cut off at 255
        if image.mode == "I" and image.format == "TIFF":
            raise ValueError("32-bit integer pixels, whose range is not known; save it with 8 or 16 bits")
        gray = (np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
        return np.repeat(gray[:, :, None], 3, axis=2)
    if image.mode == "F":
        raise ValueError("floating-point pixels, whose range is not known; save it with 8 or 16 bits")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return np.asarray(image.convert("RGB"))


def _fit(pixels: np.ndarray, max_side: int) -> np.ndarray:
    """The image, resized where it is larger so that its longer side is `max_side`."""
    height, width = pixels.shape[:2]
    longer = max(height, width)
    if longer <= max_side:
        return np.ascontiguousarray(pixels)
    size = (max(1, round(width * max_side / longer)), max(1, round(height * max_side / longer)))
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))
