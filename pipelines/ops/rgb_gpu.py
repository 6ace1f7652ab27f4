"""Interleaved RGB on a GPU: runs of eight pixels in wide loads and stores.

A pixel is three bytes, and a thread that reads bytes one by one spends more instructions on reading than on
color.  Eight pixels are 24 bytes, i.e. three vectors of eight, whose 24 values only change their names
(registers) on the way between the stream r0 g0 b0 r1 g1 … and the tensors r, g, b `[runs, 8]`.

In the kernels a prefix says what a name is: `i_` index, `o_` offsets, `m_` mask, `p_` pointer.
"""

# mypy: disable-error-code="no-untyped-def"
# (Triton takes the types of a kernel's arguments from the launch)

from pipelines.errors import EngineUnavailable

try:
    import triton
    import triton.language as tl
except ImportError as error:
    raise EngineUnavailable(
        f"the GPU kernels need Triton, which cannot be imported here ({error}); it comes with torch's CUDA "
        "wheels for Linux; use device cpu"
    ) from error

RUN = 8
"""Pixels of a run; the kernels say 8, since their vectors are made for it."""


@triton.jit
def load_rgb(p_image, o_run, NUM_PIXELS: tl.constexpr, WIDE: tl.constexpr):
    """Load runs of pixels as float32 r, g, b [runs, 8] in [0, 1]; 0 beyond the last pixel.

    Args:
        p_image: uint8, the first byte of an image of NUM_PIXELS pixels.
        o_run: int [runs]: run n holds pixels 8n … 8n + 7.
        WIDE: NUM_PIXELS is a multiple of 8 and p_image is 8-byte aligned.
    """
    if WIDE:
        p_stream = p_image + o_run[:, None] * 24 + tl.arange(0, 8)[None, :]
        m_run = (o_run < NUM_PIXELS // 8)[:, None]
        x = tl.load(p_stream, mask=m_run, other=0)
        y = tl.load(p_stream + 8, mask=m_run, other=0)
        z = tl.load(p_stream + 16, mask=m_run, other=0)
        r, g, b = _deinterleave(x, y, z)
    else:
        o_pixel = o_run[:, None] * 8 + tl.arange(0, 8)[None, :]
        m_pixel = o_pixel < NUM_PIXELS
        r = tl.load(p_image + o_pixel * 3, mask=m_pixel, other=0)
        g = tl.load(p_image + o_pixel * 3 + 1, mask=m_pixel, other=0)
        b = tl.load(p_image + o_pixel * 3 + 2, mask=m_pixel, other=0)
    return r.to(tl.float32) * (1 / 255), g.to(tl.float32) * (1 / 255), b.to(tl.float32) * (1 / 255)


@triton.jit
def store_rgb(p_image, o_first, num_valid, r, g, b, WIDE: tl.constexpr):
    """Write runs of pixels r, g, b [runs, 8], cast to the image's type.

    Args:
        p_image: the first value of an image, any type.
        o_first: int [runs]: number of each run's first pixel in the image.
        num_valid: int [runs]: the pixels of each run that exist; the others are not written.
        WIDE: num_valid is 8 (or nothing) everywhere, every o_first a multiple of 8, p_image 16-byte aligned.
    """
    dtype = p_image.dtype.element_ty
    if WIDE:
        # hints, because the compiler can't infer the alignment from the arithmetic of rows and columns
        o_stream = tl.multiple_of(o_first * 3, 8)
        p_stream = p_image + o_stream[:, None] + tl.arange(0, 8)[None, :]
        m_run = (num_valid > 0)[:, None]
        x, y, z = _interleave(r.to(dtype), g.to(dtype), b.to(dtype))
        tl.store(p_stream, x, mask=m_run)
        tl.store(p_stream + 8, y, mask=m_run)
        tl.store(p_stream + 16, z, mask=m_run)
    else:
        i_pixel = tl.arange(0, 8)[None, :]
        p_pixel = p_image + (o_first[:, None] + i_pixel) * 3
        m_pixel = i_pixel < num_valid[:, None]
        tl.store(p_pixel, r.to(dtype), mask=m_pixel)
        tl.store(p_pixel + 1, g.to(dtype), mask=m_pixel)
        tl.store(p_pixel + 2, b.to(dtype), mask=m_pixel)


@triton.jit
def _deinterleave(x, y, z):
    """Turn three vectors of the stream r0 g0 b0 r1 … b7 into r, g, b, all [runs, 8]."""
    x0, x1, x2, x3, x4, x5, x6, x7 = _split8(x)
    y0, y1, y2, y3, y4, y5, y6, y7 = _split8(y)
    z0, z1, z2, z3, z4, z5, z6, z7 = _split8(z)
    r = _join8(x0, x3, x6, y1, y4, y7, z2, z5)
    g = _join8(x1, x4, x7, y2, y5, z0, z3, z6)
    b = _join8(x2, x5, y0, y3, y6, z1, z4, z7)
    return r, g, b


@triton.jit
def _interleave(r, g, b):
    """Turn r, g, b into three vectors of the stream r0 g0 b0 r1 … b7, all [runs, 8]."""
    r0, r1, r2, r3, r4, r5, r6, r7 = _split8(r)
    g0, g1, g2, g3, g4, g5, g6, g7 = _split8(g)
    b0, b1, b2, b3, b4, b5, b6, b7 = _split8(b)
    x = _join8(r0, g0, b0, r1, g1, b1, r2, g2)
    y = _join8(b2, r3, g3, b3, r4, g4, b4, r5)
    z = _join8(g5, b5, r6, g6, b6, r7, g7, b7)
    return x, y, z


@triton.jit
def _split8(x):
    """Split [runs, 8] into its eight columns [runs]; column e = 4i + 2j + k of the splits over i, j, k."""
    even, odd = tl.split(tl.reshape(x, [x.shape[0], 2, 2, 2]))
    x04, x26 = tl.split(even)
    x15, x37 = tl.split(odd)
    x0, x4 = tl.split(x04)
    x1, x5 = tl.split(x15)
    x2, x6 = tl.split(x26)
    x3, x7 = tl.split(x37)
    return x0, x1, x2, x3, x4, x5, x6, x7


@triton.jit
def _join8(x0, x1, x2, x3, x4, x5, x6, x7):
    """Join eight columns [runs] to [runs, 8], the inverse of `_split8`."""
    even = tl.join(tl.join(x0, x4), tl.join(x2, x6))
    odd = tl.join(tl.join(x1, x5), tl.join(x3, x7))
    return tl.reshape(tl.join(even, odd), [x0.shape[0], 8])
