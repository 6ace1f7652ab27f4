"""Decodes and crops one sample in FFCV's threads: libturbojpeg and our crop, as machine code behind a C signature.

    compiled by FFCV, for each loader ──by name──▶ decode_sample, compiled once

FFCV's code calls ours by name, so that FFCV compiles a few lines for each loader instead of our whole crop.
Nothing of this file is cached on disk: numba's cache would not notice an edit of the crop, which is in another file.
"""

from functools import cache
from typing import Any

import llvmlite.binding
import numpy as np
from numba import carray, cfunc, types
from numba.extending import intrinsic

from pipelines.engines.native.turbojpeg import bind_turbojpeg, decode_jpeg, external
from pipelines.jpeg.window import cut_around
from pipelines.ops.crop.cpu import crop_resize
from pipelines.system.jit import njit

_int, _address, _size = types.intc, types.uintp, types.uintp
decode_sample: Any = external(
    "fastclr_decode_sample", _int, _address, _address, _size, *[_int] * 5, *[_address] * 6, _size, _address
)
"""C handle of `_decode_sample`, callable from FFCV's compiled code; returns 1 if the sample is corrupt."""


@cache
def compile_decode_sample(library: str) -> object:
    """Compile `decode_sample` and register its address, and those of libturbojpeg's functions, by name.

    Args:
        library: path of a shared library linked with libturbojpeg, for systems that don't find libturbojpeg itself.

    Returns:
        An object that must stay alive; the cache keeps it.

    Raises:
        OSError: there is no libturbojpeg of version 1.4 or newer.
    """
    bind_turbojpeg(library)
    compiled = cfunc(decode_sample.sig)(_decode_sample)
    llvmlite.binding.add_symbol(decode_sample.symbol, compiled.address)
    return compiled


@intrinsic
def _add_one(typingctx, counter):
    def codegen(context, builder, sig, args):
        data = context.make_array(sig.args[0])(context, builder, args[0]).data
        return builder.atomic_rmw("add", data, context.get_constant(types.int64, 1), "monotonic")

    return types.int64(counter), codegen


@njit(nogil=True)
def claim(counter):
    """Return the counter (int64 [1]) and increment it atomically, so that no two threads get the same number."""
    return _add_one(counter)


@intrinsic
def _pointer(typingctx, address):
    def codegen(context, builder, sig, args):
        return builder.inttoptr(args[0], context.get_value_type(sig.return_type))

    return types.CPointer(types.uint8)(types.uintp), codegen


@njit(nogil=True)
def bytes_at(address, size):
    """Return the memory at an address: uint8 [size].

    A closed-over array would be frozen into the machine code; an address is read anew.
    """
    return carray(_pointer(address), (size,))


def _decode_sample(
    decoder,
    payload,
    num_bytes,
    is_jpeg,
    height,
    width,
    dct,
    num_views,
    view_sizes,
    boxes,
    flips,
    views,
    image,
    scratch,
    scratch_size,
    cut_jpeg,
):
    """Decode a sample once and write its views; return 1 if it is corrupt, and its views black, else 0.

    decoder: of this thread.  num_bytes at payload: JPEG or raw pixels, height × width by the file's metadata.
    dct: `ACCURATE_DCT` or `FAST_DCT`.  At the other addresses: view_sizes int64 [V]; boxes int32 [V, 4]; flips
    bool [V]; views uintp [V], each the address of a uint8 [size, size, 3] to be written; image, scratch and cut_jpeg,
    working memory of this thread: 3·height·width bytes, the scratch_size bytes that `crop_resize` needs, and num_bytes
    for the JPEG of a window (0: images are decoded whole).
    """
    payload_bytes = bytes_at(payload, num_bytes)
    box = bytes_at(boxes, 16 * num_views).view(np.int32).reshape(num_views, 4)
    window = np.zeros(4, np.int64)
    window[2], window[3] = height, width
    pixels, decoded = payload_bytes.reshape(-1, 1, 1), not is_jpeg
    if is_jpeg and cut_jpeg:
        size = cut_around(payload_bytes, box, bytes_at(cut_jpeg, num_bytes), window)
        if size:
            pixels = bytes_at(image, 3 * window[2] * window[3]).reshape(window[2], window[3], 3)
            decoded = decode_jpeg(decoder, bytes_at(cut_jpeg, size), dct, pixels)
    if not decoded:
        window[0], window[1], window[2], window[3] = 0, 0, height, width
        pixels = bytes_at(image, 3 * height * width).reshape(height, width, 3)
        decoded = decode_jpeg(decoder, payload_bytes, dct, pixels)
    elif not is_jpeg:
        pixels = payload_bytes.reshape(height, width, 3)
    flip = bytes_at(flips, num_views).view(np.bool_)
    size_of = bytes_at(view_sizes, 8 * num_views).view(np.int64)
    view_at = bytes_at(views, 8 * num_views).view(np.uintp)
    for v in range(num_views):
        size = size_of[v]
        out = bytes_at(view_at[v], 3 * size * size).reshape(size, size, 3)
        if decoded:
            top, left, box_height, box_width = box[v]
            memory = bytes_at(scratch, scratch_size)
            top, left = top - window[0], left - window[1]
            crop_resize(pixels, top, left, box_height, box_width, flip[v], out, memory)
        else:
            out[...] = 0
    return 0 if decoded else 1
