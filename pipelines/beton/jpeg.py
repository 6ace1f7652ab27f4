"""Reads the markers of a JPEG file (ITU-T T.81, annex B) before a decoder is given the file.

A hostile header is cheap: a file of a few hundred bytes can claim 65,535² pixels, or hold thousands of scans, each of
which costs as much as decoding the whole image.
"""

import io
from typing import NamedTuple

import numpy as np
import simplejpeg

from pipelines.system.terminal import one_line

MAX_SCANS = 100
"""Maximum number of scans of a JPEG that is decoded; encoders write at most about ten."""
MAX_PIXELS_PER_BYTE = 1024
"""Maximum pixels per byte of a large JPEG.  A block of 64 pixels takes at least a bit, which is 512 pixels per byte."""
LARGE = 1 << 22
"""Images with more pixels than this (12 MB decoded) are held to the bound above."""


class Frame(NamedTuple):
    """What the frame header of a JPEG says."""

    coding: str
    """"baseline" means 8 bits, Huffman, sequential."""
    height: int
    width: int
    num_components: int


_CODINGS = {
    0xC0: "baseline",
    0xC1: "extended",
    0xC2: "progressive",
    0xC3: "lossless",
    0xC9: "arithmetic-coded",
    0xCA: "arithmetic-coded",
}


def read_frame(data: bytes) -> Frame | None:
    """Return the frame header of a JPEG; None where there is none.  A few microseconds."""
    if data[:2] != b"\xff\xd8":
        return None
    at, end = 2, len(data) - 9
    while 0 <= at < end:
        marker = data[at + 1]
        # padding, or junk that decoders skip
        if data[at] != 0xFF or marker == 0xFF:
            at = data.find(b"\xff", at + 1)
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            coding, bits = _CODINGS.get(marker, "unusual"), data[at + 4]
            height, width = data[at + 5] << 8 | data[at + 6], data[at + 7] << 8 | data[at + 8]
            return Frame(coding if bits == 8 else f"{bits}-bit", height, width, data[at + 9])
        # a scan before any frame
        elif marker == 0xDA:
            return None
        else:
            at += 2 + (data[at + 2] << 8 | data[at + 3])
    return None


def check_scans(data: bytes, max_scans: int = MAX_SCANS) -> None:
    """Raise ValueError where a JPEG has more scans than `max_scans`."""
    # the search through a photo takes 100 µs, and few photos need it
    if not _has_one_scan(data) and _has_more_scans(data, max_scans):
        raise ValueError(
            f"its JPEG has more than {max_scans} scans, each of which costs as much as decoding the image"
        )


def _has_one_scan(data: bytes) -> bool:
    """Whether a JPEG is sequential and its first scan has all components, after which decoders stop."""
    at, components = 2, 0
    while 0 <= at < len(data) - 9:
        marker = data[at + 1]
        if data[at] != 0xFF or marker == 0xFF:
            at = data.find(b"\xff", at + 1)
        elif marker == 0xDA:
            return data[at + 4] == components
        else:
            if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
                if _CODINGS.get(marker) not in ("baseline", "extended"):
                    return False
                components = data[at + 9]
            at += 2 + (data[at + 2] << 8 | data[at + 3])
    return False


def _has_more_scans(data: bytes, max_scans: int) -> bool:
    # every scan has this marker; other segments may contain the bytes by chance
    if data.count(b"\xff\xda") <= max_scans:
        return False
    at, scans = 2, 0
    while 0 <= at < len(data) - 3:
        marker = data[at + 1]
        if data[at] != 0xFF or marker == 0xFF:
            at = data.find(b"\xff", at + 1)
        # stuffed zeros and restarts, within a scan
        elif marker in (0x00, 0x01) or 0xD0 <= marker <= 0xD7:
            at = data.find(b"\xff", at + 2)
        elif marker == 0xD9:
            return False
        else:
            scans += marker == 0xDA
            if scans > max_scans:
                return True
            at += 2 + (data[at + 2] << 8 | data[at + 3])
    return False


def read_header(data: bytes | np.ndarray) -> tuple[int, int, str]:
    """Return height, width and color space ("YCbCr", "Gray", "RGB", "CMYK", …) of a JPEG.

    Raises:
        ValueError: it is corrupt.
    """
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
        return height, width, colorspace
    except (ValueError, MemoryError):
        raise
    # simplejpeg raises KeyError for chroma samplings that it does not know
    except Exception as error:
        frame = read_frame(bytes(data))
        if frame is None:
            raise ValueError(f"its JPEG header is corrupt ({type(error).__name__}: {error})") from error
        names = {1: "Gray", 3: "YCbCr", 4: "CMYK"}
        return (
            frame.height,
            frame.width,
            names.get(frame.num_components, f"{frame.num_components} components"),
        )


def decode(data: np.ndarray, fast_dct: bool = False, out: np.ndarray | None = None) -> np.ndarray:
    """Decode a JPEG strictly with simplejpeg, or with Pillow if simplejpeg does not know its kind: uint8 [h, w, 3].

    Args:
        data: uint8: the file.
        fast_dct: decode with the fast, less accurate inverse DCT.
        out: uint8, flat: where to write the pixels; None allocates.

    Raises:
        ValueError: it is corrupt, or `out` is too small.
    """
    try:
        return simplejpeg.decode_jpeg(data, fastdct=fast_dct, buffer=out)
    except (ValueError, MemoryError):
        raise
    # simplejpeg raises KeyError for chroma samplings that it does not know
    except Exception:
        pixels = decode_by_pillow(data.tobytes())
    if out is None:
        return pixels
    if len(out) < pixels.size:
        raise ValueError(f"{pixels.size} bytes do not fit into a buffer of {len(out)}")
    out[: pixels.size] = pixels.reshape(-1)
    return out[: pixels.size].reshape(pixels.shape)


def decode_by_pillow(data: bytes) -> np.ndarray:
    """Decode a JPEG of a kind that simplejpeg does not know: uint8 [h, w, 3].

    Raises:
        ValueError: Pillow cannot decode it either.
    """
    from PIL.JpegImagePlugin import JpegImageFile

    try:
        # Image.open would apply Pillow's own limit on the number of pixels
        with JpegImageFile(io.BytesIO(data)) as image:
            return np.array(image.convert("RGB"))
    except MemoryError:
        raise
    # Pillow raises SyntaxError and others for corrupt files
    except Exception as error:
        raise ValueError(one_line(error)) from error
