"""The two Triton kernels of a LARS step over a table of tensors; fused.py makes the table and launches them.

A row of the table is (w, g, v, numel, first_chunk, num_partials): the addresses of three float32 tensors, their number
of elements, the number of their first chunk, and the number of their chunks with partial norms, which is all of them,
or none for a tensor without a trust ratio.  A chunk is CHUNK elements of one tensor, and is the work of one program.

An address is a multiple of 4 and usually of 16.  Of whole blocks at multiples of 16 a thread reads 16 bytes at once, of
others 4.

Prefixes: p_ pointer, i_ program index, o_ offsets, m_ mask, b_ a block's values.
"""

# mypy: disable-error-code="no-untyped-def"
# (Triton takes the types of a kernel's arguments from the launch)

import triton
import triton.language as tl

COLUMNS = 6
"""Columns of the table."""


@triton.jit
def _locate_chunk(p_table, p_chunk_tensors, i_chunk, CHUNK: tl.constexpr, COLUMNS: tl.constexpr):
    """Locate a chunk: return its tensor, the tensor's row, and the chunk's first element and number of elements."""
    i_tensor = tl.load(p_chunk_tensors + i_chunk)
    p_row = p_table + i_tensor * COLUMNS
    start = (i_chunk - tl.load(p_row + 4)) * CHUNK
    return i_tensor, p_row, start, tl.minimum(tl.load(p_row + 3) - start, CHUNK).to(tl.int32)


@triton.jit
def _pointer(address, start, WIDE: tl.constexpr):
    """Return a pointer to element `start` of the float32 tensor at an address; WIDE promises that 16 divides it."""
    pointer = address.to(tl.pointer_type(tl.float32))
    if WIDE:
        pointer = tl.multiple_of(pointer, 16)
    return pointer + start


@triton.jit
def _squares(b_w, b_g, b_v, decay, momentum, FORM: tl.constexpr):
    """Return w² and step², where `step` is the denominator of the trust ratio (g + λw, v or g, by FORM)."""
    if FORM == "port":
        b_step = b_g
    else:
        b_step = b_g + decay * b_w
        if FORM == "popular":
            b_step += momentum * b_v
    return b_w * b_w, b_step * b_step


@triton.jit
def norms_kernel(
    p_table, p_decays, p_chunk_tensors, p_partials, momentum,
    FORM: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Write partials[chunk] = (‖w‖², ‖step‖²) of a chunk; step is g + λw, the next v, or g, by FORM."""
    i_chunk = tl.program_id(0)
    i_tensor, p_row, start, length = _locate_chunk(p_table, p_chunk_tensors, i_chunk, CHUNK, COLUMNS)
    decay = tl.load(p_decays + i_tensor)
    address_w, address_g, address_v = tl.load(p_row), tl.load(p_row + 1), tl.load(p_row + 2)
    o_block = tl.arange(0, BLOCK)
    b_w2 = tl.zeros([BLOCK], dtype=tl.float32)
    b_s2 = tl.zeros([BLOCK], dtype=tl.float32)
    whole = tl.where((address_w | address_g | address_v) % 16 == 0, length // BLOCK * BLOCK, 0)

    p_w = _pointer(address_w, start, WIDE=True)
    p_g = _pointer(address_g, start, WIDE=True)
    p_v = _pointer(address_v, start, WIDE=True)
    for first in range(0, whole, BLOCK):
        o = first + o_block
        b_w, b_g, b_v = tl.load(p_w + o), tl.load(p_g + o), 0.0
        if FORM == "popular":
            b_v = tl.load(p_v + o)
        b_x, b_y = _squares(b_w, b_g, b_v, decay, momentum, FORM)
        b_w2 += b_x
        b_s2 += b_y

    p_w = _pointer(address_w, start, WIDE=False)
    p_g = _pointer(address_g, start, WIDE=False)
    p_v = _pointer(address_v, start, WIDE=False)
    for first in range(whole, length, BLOCK):
        o = first + o_block
        m = o < length
        b_w, b_g, b_v = tl.load(p_w + o, mask=m, other=0.0), tl.load(p_g + o, mask=m, other=0.0), 0.0
        if FORM == "popular":
            b_v = tl.load(p_v + o, mask=m, other=0.0)
        b_x, b_y = _squares(b_w, b_g, b_v, decay, momentum, FORM)
        b_w2 += b_x
        b_s2 += b_y

    tl.store(p_partials + i_chunk * 2, tl.sum(b_w2, axis=0))
    tl.store(p_partials + i_chunk * 2 + 1, tl.sum(b_s2, axis=0))


@triton.jit
def _trust(p_partials, p_row, decay, trust_coefficient, FORM: tl.constexpr, PARTIALS: tl.constexpr):
    """Return η‖w‖/‖step‖ of a tensor from its chunks' partial norms, added in a fixed order; 1 if there are none."""
    first, num_partials = tl.load(p_row + 4), tl.load(p_row + 5)
    o_partial = tl.arange(0, PARTIALS)
    b_w2 = tl.zeros([PARTIALS], dtype=tl.float32)
    b_s2 = tl.zeros([PARTIALS], dtype=tl.float32)
    for begin in range(0, num_partials, PARTIALS):
        m = begin + o_partial < num_partials
        b_w2 += tl.load(p_partials + (first + begin + o_partial) * 2, mask=m, other=0.0)
        b_s2 += tl.load(p_partials + (first + begin + o_partial) * 2 + 1, mask=m, other=0.0)
    w = tl.sqrt(tl.sum(b_w2, axis=0))
    step = tl.sqrt(tl.sum(b_s2, axis=0))
    if FORM == "port":
        divisor = step + decay * w
    else:
        divisor = step
    known = (w > 0) & (step > 0)
    return tl.where(known, trust_coefficient * w / tl.where(known, divisor, 1.0), 1.0)


@triton.jit
def update_kernel(
    p_table, p_decays, p_chunk_tensors, p_partials, lr, momentum, trust_coefficient,
    LR_ON_DEVICE: tl.constexpr, FORM: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
    COLUMNS: tl.constexpr, PARTIALS: tl.constexpr,
):  # fmt: skip
    """Update v ← μv + inside·(g + λw) and w ← w − outside·v; FORM puts learning rate and trust ratio in- or outside."""
    # Backwards, because the last chunks that norms_kernel read are still in the L2 cache.
    i_chunk = tl.num_programs(0) - 1 - tl.program_id(0)
    i_tensor, p_row, start, length = _locate_chunk(p_table, p_chunk_tensors, i_chunk, CHUNK, COLUMNS)
    decay = tl.load(p_decays + i_tensor)
    address_w, address_g, address_v = tl.load(p_row), tl.load(p_row + 1), tl.load(p_row + 2)
    rate = tl.load(lr).to(tl.float32) if LR_ON_DEVICE else lr
    trust = _trust(p_partials, p_row, decay, trust_coefficient, FORM, PARTIALS)
    if FORM == "authors":
        inside, outside = rate * trust, 1.0
    elif FORM == "popular":
        inside, outside = 1.0, rate * trust
    else:
        inside, outside = trust, rate
    o_block = tl.arange(0, BLOCK)
    whole = tl.where((address_w | address_g | address_v) % 16 == 0, length // BLOCK * BLOCK, 0)

    p_w = _pointer(address_w, start, WIDE=True)
    p_g = _pointer(address_g, start, WIDE=True)
    p_v = _pointer(address_v, start, WIDE=True)
    for first in range(0, whole, BLOCK):
        o = first + o_block
        b_w = tl.load(p_w + o)
        b_v = momentum * tl.load(p_v + o) + inside * (tl.load(p_g + o) + decay * b_w)
        tl.store(p_v + o, b_v)
        tl.store(p_w + o, b_w - outside * b_v)

    p_w = _pointer(address_w, start, WIDE=False)
    p_g = _pointer(address_g, start, WIDE=False)
    p_v = _pointer(address_v, start, WIDE=False)
    for first in range(whole, length, BLOCK):
        o = first + o_block
        m = o < length
        b_w = tl.load(p_w + o, mask=m)
        b_v = momentum * tl.load(p_v + o, mask=m) + inside * (tl.load(p_g + o, mask=m) + decay * b_w)
        tl.store(p_v + o, b_v, mask=m)
        tl.store(p_w + o, b_w - outside * b_v, mask=m)
