"""Encodes an image for storage: its file as it is, a new JPEG, or its pixels."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import simplejpeg
from PIL import Image

from pipelines.beton.jpeg import (
    LARGE,
    MAX_PIXELS_PER_BYTE,
    MAX_SCANS,
    Frame,
    check_scans,
    decode_by_pillow,
    read_frame,
)
from pipelines.beton.layout import MAX_SIDE, page_size
from pipelines.convert import pillow
from pipelines.convert.jpeg_encoder import encode_jpeg
from pipelines.convert.memory_budget import MemoryBudget
from pipelines.jpeg import Restart, TranscodeError
from pipelines.system.terminal import one_line

BYTES_PER_PIXEL = 12
"""Memory per pixel while an image is decoded, in bytes: up to 9 in libjpeg, 11 in Pillow."""


@dataclass(frozen=True)
class Encoding:
    """How images are stored.

    Raises:
        ValueError: a value out of its range.
    """

    jpeg: Literal["keep", "lossless", "recompress"] = "keep"
    """"keep": store a baseline JPEG of up to --max-side byte for byte; "lossless": the same, with restart markers added
    and its pixels untouched, so that a loader decodes only what it crops; "recompress": encode all anew with restart
    markers, in FFCV's format."""
    mode: Literal["jpg", "raw"] = "jpg"
    """"jpg": JPEG files; "raw": decoded pixels, about ten times as large and without a decoder's cost."""
    max_side: int = 500
    """Maximum longer side of a stored image, pixels; larger images are resized to it (Lanczos, antialiased)."""
    quality: int = 90
    """JPEG quality of images that are encoded anew, 1 to 100; chroma is always 4:2:0."""
    restart: Restart = "auto"
    """MCUs (blocks of up to 16×16 pixels) between the restart markers of "lossless" and "recompress"; "auto": 1 in
    "recompress", as many as 64 pixels are wide in "lossless"; "none": no markers."""
    verify: Literal["full", "header"] = "full"
    """"full": decode every JPEG, strictly, before it is stored; "header": read its header only ("keep" alone)."""

    max_scans: int = MAX_SCANS
    """Maximum scans of a JPEG, 1 or more; a file with more is left out: each costs as much as decoding the image."""
    max_pixels_per_byte: int = 10_000
    """Maximum pixels per byte of an image file over 4 megapixels, 1 or more; a file that claims more is left out.  For
    a JPEG it is never more than 1024, which is all that a JPEG can hold."""
    max_memory_mb: int = 0
    """Memory limit for images while they are decoded, in megabytes, for all workers together; of large images fewer are
    decoded at a time.  0: half of the available memory."""

    def __post_init__(self) -> None:
        if not 1 <= self.max_side <= MAX_SIDE:
            raise ValueError(f"max_side must be 1 to {MAX_SIDE} pixels, got {self.max_side}")
        if not 1 <= self.quality <= 100:
            raise ValueError(f"quality must be 1 to 100, got {self.quality}")
        if self.restart not in ("auto", "none") and (isinstance(self.restart, str) or self.restart < 1):
            raise ValueError(f"restart must be auto, none or a number of MCUs, got {self.restart}")
        for name, minimum in (("max_scans", 1), ("max_pixels_per_byte", 1), ("max_memory_mb", 0)):
            if getattr(self, name) < minimum:
                raise ValueError(f"{name} must be at least {minimum}, got {getattr(self, name)}")


class Stored(NamedTuple):
    """What is stored of an image."""

    image: bytes | np.ndarray
    """A JPEG file, or uint8 [h, w, 3] pixels."""
    kept: bool
    """Whether it is the source's file, byte for byte."""
    note: str = ""
    """Why the image was not kept, and what else the user should know about it, `warning` included."""
    warning: str = ""
    """Why the strict decoder refuses the file; a lenient decoder gave its pixels, some of which may be wrong."""
    transcoded: bool = False
    """Whether it is the source's file with restart markers, without loss."""


def encode(image: bytes | np.ndarray, encoding: Encoding, memory: MemoryBudget | None = None) -> Stored:
    """Return what to store of an image.

    Args:
        image: an image file's bytes, or uint8 [h, w, 3] RGB pixels.
        memory: budget that the image's memory is taken from while it is decoded; None: no limit.

    Raises:
        ValueError: it is no image, is corrupt, is of a kind that is not read, or exceeds a limit of `encoding`.
    """
    memory = memory or MemoryBudget(0)
    keep = encoding.mode == "jpg" and encoding.jpeg in ("keep", "lossless")
    if not isinstance(image, bytes):
        return _encode_pixels(image, encoding, "pixels" if keep else "")
    frame = read_frame(image)
    if frame is not None:
        _check_size(frame.height, frame.width, len(image), encoding, MAX_PIXELS_PER_BYTE)
        check_scans(image, encoding.max_scans)
        with memory.hold(BYTES_PER_PIXEL * frame.height * frame.width):
            return _encode_jpeg(image, frame, encoding, keep)
    with pillow.our_limits():
        opened = pillow.open_image(image)
        _check_size(opened.height, opened.width, len(image), encoding)
        with memory.hold(BYTES_PER_PIXEL * opened.height * opened.width):
            pixels, note = pillow.to_pixels(opened)
            return _encode_pixels(pixels, encoding, "not JPEG" if keep else "", note)


def _encode_jpeg(data: bytes, frame: Frame, encoding: Encoding, keep: bool) -> Stored:
    reason = _reencode_reason(data, frame, encoding) if keep else ""
    lossless = encoding.jpeg == "lossless"
    if keep and not reason and encoding.verify == "header" and not lossless:
        return Stored(data, kept=True)
    pixels, warning = _jpeg_pixels(data, check_color=not keep or bool(reason))
    if keep and not reason and not warning:
        return _transcode(data, pixels, encoding) if lossless else Stored(data, kept=True)
    return _encode_pixels(pixels, encoding, reason, "", warning)


def _transcode(data: bytes, pixels: np.ndarray, encoding: Encoding) -> Stored:
    """Return a JPEG with restart markers, verified by decoding it again; or the file as it is, with a note why."""
    # its compiled code takes half a second to load, which only this choice needs
    from pipelines.jpeg import add_restarts

    try:
        file = add_restarts(data, encoding.restart)
    except TranscodeError as error:
        return Stored(data, kept=True, note=f"kept without restart markers: {error}")
    if len(file) > page_size(encoding.max_side):
        return Stored(
            data, kept=True, note="kept without restart markers: with them it is larger than a page"
        )
    if not np.array_equal(simplejpeg.decode_jpeg(file), pixels):
        return Stored(data, kept=True, note="kept without restart markers: with them its pixels differ")
    return Stored(file, kept=False, transcoded=True)


def _encode_pixels(
    pixels: np.ndarray, encoding: Encoding, reason: str, note: str = "", warning: str = ""
) -> Stored:
    """Return pixels in the form in which they are stored, with the notes on them."""
    notes = "; ".join(dict.fromkeys(filter(None, (reason, note, warning))))
    pixels = _downscale(pixels, encoding.max_side)
    if encoding.mode == "raw":
        return Stored(pixels, False, notes, warning)
    file = encode_jpeg(pixels, encoding.quality, encoding.restart)
    if encoding.verify == "full":
        simplejpeg.decode_jpeg(file)
    return Stored(file, False, notes, warning)


def _check_size(
    height: int, width: int, num_bytes: int, encoding: Encoding, max_ratio: int | None = None
) -> None:
    """Raise ValueError where an image has too many pixels, absolutely or for a file of `num_bytes`."""
    pillow.check_pixels(height, width)
    ratio = min(encoding.max_pixels_per_byte, max_ratio or encoding.max_pixels_per_byte)
    if height * width > max(LARGE, ratio * num_bytes):
        raise ValueError(
            f"a file of {num_bytes} bytes that claims {height}×{width} pixels; up to {ratio} pixels per byte are read "
            "(max_pixels_per_byte)"
        )


def _reencode_reason(data: bytes, frame: Frame, encoding: Encoding) -> str:
    """Return why the headers of a JPEG forbid to store it as it is; "" if they don't."""
    if frame.coding != "baseline":
        return f"{frame.coding} JPEG"
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
        if encoding.max_scans > MAX_SCANS:
            check_scans(data)
    except ValueError as error:
        return _refusal(error)
    except MemoryError:
        raise
    # simplejpeg raises KeyError for chroma samplings that it does not know
    except Exception as error:
        return f"JPEG of a kind that simplejpeg does not read ({type(error).__name__}: {error})"
    if colorspace not in ("YCbCr", "Gray"):
        return f"{colorspace} JPEG"
    if max(height, width) > encoding.max_side:
        return f"longer side over {encoding.max_side} pixels"
    if len(data) > page_size(encoding.max_side):
        return "file larger than a page"
    return ""


def _jpeg_pixels(data: bytes, check_color: bool) -> tuple[np.ndarray, str]:
    """Decode a JPEG: pixels uint8 [h, w, 3], ignoring orientation tags, and why the strict decoder refuses it or "".

    check_color: the JPEG may have another color space than YCbCr or gray, which Pillow must decode.
    """
    warning = ""
    try:
        if not check_color or simplejpeg.decode_jpeg_header(data)[2] in ("YCbCr", "Gray"):
            return simplejpeg.decode_jpeg(data), ""
    except ValueError as error:
        warning = _refusal(error)
    except MemoryError:
        raise
    # simplejpeg raises KeyError and others for kinds of JPEGs that it does not know; Pillow may know them
    except Exception:
        return decode_by_pillow(data), ""
    return decode_by_pillow(data), warning


def _refusal(error: ValueError) -> str:
    return f"strict decoding refuses it: {one_line(error)}"


def _downscale(pixels: np.ndarray, max_side: int) -> np.ndarray:
    """Return the image, resized so that its longer side is at most `max_side` pixels."""
    height, width = pixels.shape[:2]
    longer = max(height, width)
    if longer <= max_side:
        return np.ascontiguousarray(pixels)
    size = (max(1, round(width * max_side / longer)), max(1, round(height * max_side / longer)))
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))
