"""libturbojpeg for compiled code: decodes many images in one call that does not hold the GIL.

simplejpeg takes a call from Python per image.  Re-acquiring the GIL after each call costs more than decoding a small
image, and more with every thread.  simplejpeg contains the same decoder, but hides it inside its wheel; so this file
needs libturbojpeg as a library of the system (or of a conda environment).

    compiled code ──by name──▶ libturbojpeg: the first one that was bound, for the whole process

Functions whose machine code numba caches call only functions of this file: its cache misses an edit in another.
"""

import ctypes
import threading
import weakref
from typing import Any

import llvmlite.binding
import numpy as np
from numba import types
from numba.core.typing import signature

from pipelines.beton.jpeg import MAX_SCANS
from pipelines.beton.layout import JPEG_MODE
from pipelines.system.jit import njit

INSTALL = "apt-get install libturbojpeg0-dev"  # the name that Debian and Ubuntu share
LIBRARIES = ("libturbojpeg.so.0", "libturbojpeg.dylib")
"""File names of the library, searched for in the system's folders and in those of a conda environment."""
ACCURATE_DCT, FAST_DCT = 4096, 2048
"""Values of `dct`: the inverse DCT that PIL and simplejpeg use, or the one that FFCV's own decoders use."""

_RGB = 0  # TJPF_RGB
_int, _address, _size = types.intc, types.uintp, types.uintp


def external(name: str, result: types.Type, *arguments: types.Type) -> Any:
    """Return a C function that compiled code can call; its name must have an address before the code is compiled."""
    return types.ExternalFunction(name, signature(result, *arguments))


open_decoder = external("tjInitDecompress", _address)
"""() → a decoder for one thread."""
close_decoder = external("tjDestroy", _int, _address)
"""(decoder): free it."""
_read_header = external("tjDecompressHeader3", _int, _address, _address, _size, *[_address] * 4)
_decompress = external("tjDecompress2", _int, _address, _address, _size, _address, *[_int] * 5)

_binding = threading.Lock()
_bound: list[ctypes.CDLL] = []


def bind_turbojpeg(*libraries: str) -> ctypes.CDLL:
    """Register the addresses of the functions above, before compiled code calls them.  Later calls change nothing.

    Args:
        libraries: further places to look: paths of shared libraries that are linked with libturbojpeg.

    Raises:
        OSError: there is no libturbojpeg of version 1.4 or newer here.
    """
    functions = (open_decoder, close_decoder, _read_header, _decompress)
    with _binding:
        for library in () if _bound else (*LIBRARIES, *libraries):
            try:
                loaded = ctypes.CDLL(library)
                addresses = [
                    ctypes.cast(getattr(loaded, function.symbol), ctypes.c_void_p) for function in functions
                ]
            except (OSError, AttributeError):  # not there, or too old
                continue
            for function, address in zip(functions, addresses, strict=True):
                llvmlite.binding.add_symbol(function.symbol, address.value)
            loaded.tjInitDecompress.restype = ctypes.c_void_p
            loaded.tjDestroy.argtypes = [ctypes.c_void_p]
            _bound.append(loaded)
            break
        if not _bound:
            raise OSError(f"no libturbojpeg was found: {INSTALL}")
        return _bound[0]


class Decoder:
    """libturbojpeg's working memory, for one thread.  OSError: see `bind_turbojpeg`."""

    def __init__(self) -> None:
        library = bind_turbojpeg()
        self.address = library.tjInitDecompress()
        if not self.address:
            raise MemoryError("libturbojpeg could not make a decoder")
        # not at exit: a thread might still decode with it
        weakref.finalize(self, library.tjDestroy, self.address).atexit = False


@njit(nogil=True, cache=True)
def cached_start(pixels, at):
    """Return the first position from `at` on where an image of `pixels`, uint8 flat, stays in the cache.

    libjpeg-turbo writes rows that begin at a multiple of 32 bytes past the cache (jdcolext-avx2, `vmovntdq`), so the
    crop kernel would wait for memory: 30 to 60 µs per photo whose row is a multiple of 32 bytes long.
    """
    return at + (1 - np.int64(pixels.ctypes.data) - at) % 32


@njit(nogil=True, cache=True)
def decode_samples(decoder, data, offsets, sizes, modes, heights, widths, indices, low, high, pixels, starts):
    """Decode samples `indices[low:high]` one after the other into `pixels`, until one does not fit or is corrupt.

    Args:
        decoder: address of this thread's Decoder.
        data: uint8: the file.
        offsets, sizes, modes, heights, widths: int [N]: a reader's columns, checked by it against `data`.
        indices: int64 [B].
        pixels: uint8, flat: is written.
        starts: int64 [high − low] or more: is written, where in `pixels` each image begins.

    Returns:
        how many were decoded.  A warning of the decoder (a truncated file, for example) counts as corrupt.
    """
    end = np.int64(0)
    for row in range(low, high):
        sample = indices[row]
        offset, height, width = np.int64(offsets[sample]), np.int64(heights[sample]), np.int64(widths[sample])
        begin = cached_start(pixels, end)
        end = begin + 3 * height * width
        if end > pixels.size:
            return row - low
        payload, image = data[offset : offset + np.int64(sizes[sample])], pixels[begin:end]
        if modes[sample] != JPEG_MODE:
            image[:] = payload
        elif not decode_jpeg(decoder, payload, ACCURATE_DCT, image.reshape(height, width, 3)):
            return row - low
        starts[row - low] = begin
    return high - low


@njit(nogil=True, cache=True)
def decode_windows(decoder, data, modes, indices, low, high, cut, places, windows, pixels, starts):
    """Decode the windows of rows [low, high) of a batch one after the other, until one does not fit or is corrupt.

    Args:
        decoder: address of this thread's Decoder.
        data: uint8: the file.
        modes: uint8 [N]: a reader's column.
        indices: int64 [B]: sample of each row.
        cut, places, windows: what `pipelines.jpeg.window.cut_samples` wrote for these rows.
        pixels: uint8, flat: is written.
        starts: int64 [high − low] or more: is written, where in `pixels` each window begins.

    Returns:
        how many were decoded.  A warning of the decoder (a truncated file, for example) counts as corrupt.
    """
    end = np.int64(0)
    for row in range(high - low):
        first, last = places[row, 1], places[row, 1] + places[row, 2]
        height, width = np.int64(windows[row, 2]), np.int64(windows[row, 3])
        begin = cached_start(pixels, end)
        end = begin + 3 * height * width
        if end > pixels.size:
            return row
        window = pixels[begin:end]
        if modes[indices[low + row]] != JPEG_MODE:
            window[:] = data[first:last]
        elif places[row, 0]:
            if not decode_jpeg(decoder, cut[first:last], ACCURATE_DCT, window.reshape(height, width, 3)):
                return row
        elif not decode_jpeg(decoder, data[first:last], ACCURATE_DCT, window.reshape(height, width, 3)):
            return row
        starts[row] = begin
    return high - low


@njit(nogil=True, cache=True)
def has_many_scans(payload):
    """Whether a JPEG may have more scans than are decoded: each costs as much as decoding the image.

    Only a JPEG whose first scan does not hold all components is searched.  Bytes of other segments may look like scans
    and be counted, too; `BetonReader`, which decodes such an image next, decides.
    """
    at, num_components, progressive = 2, 0, False
    while at + 9 < payload.size:
        marker = payload[at + 1]
        if payload[at] != 0xFF or marker == 0xFF:
            at += 1
        elif marker <= 0x01 or 0xD0 <= marker <= 0xD7:  # without a length
            at += 2
        elif marker == 0xDA:
            break
        else:
            if 0xC0 <= marker <= 0xCF and marker != 0xC4 and marker != 0xC8 and marker != 0xCC:
                num_components = payload[at + 9]
                progressive = marker & 3 == 2
            at += 2 + (int(payload[at + 2]) << 8 | int(payload[at + 3]))
    if at + 9 < payload.size and not progressive and payload[at + 4] == num_components:
        return False
    scans = 0
    while at + 1 < payload.size:
        if payload[at] == 0xFF and payload[at + 1] == 0xDA:
            scans += 1
        at += 1
    return scans > MAX_SCANS


@njit(nogil=True, cache=True)
def decode_jpeg(decoder, payload, dct, pixels):
    """Fill pixels uint8 [h, w, 3]; return whether the decoder gave neither an error nor a warning."""
    height, width = pixels.shape[:2]
    found = np.zeros(4, np.int32)  # width, height, subsampling, color space
    at = found.ctypes.data
    failed = _read_header(decoder, payload.ctypes.data, payload.size, at, at + 4, at + 8, at + 12)
    if failed or found[0] != width or found[1] != height:  # an image of another size would be scaled to ours
        return False
    if has_many_scans(payload):
        return False
    data, out = payload.ctypes.data, pixels.ctypes.data
    return not _decompress(decoder, data, payload.size, out, width, 3 * width, height, _RGB, dct)
