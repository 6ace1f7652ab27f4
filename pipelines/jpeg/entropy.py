"""The entropy-coded data of a baseline JPEG, rewritten with other restart intervals: compiled code.

    _unstuff:  bytes of the file ──▶ bits without the zeros behind 0xFF
    recode:    bits ──▶ the same bits, but for the first DC difference of each component in each new interval

Functions call only functions of this file, because numba's cache does not notice an edit in another.  Their input is
untrusted; `restart.add_restarts` checks the header.
"""

import numpy as np
from numba import types
from numba.core.typing import signature

from pipelines.system.jit import njit

# addresses are signed here: numba makes a float of the sum of a signed and an unsigned integer
_memchr = types.ExternalFunction("memchr", signature(types.intp, types.intp, types.intc, types.intp))
_memcpy = types.ExternalFunction("memcpy", signature(types.intp, types.intp, types.intp, types.intp))

FAST_BITS = 10
"""Codes of up to this length are looked up in a table; longer ones are searched."""

# Huffman tables as `recode` reads them: int32 rows of FAST_ENTRIES looked-up entries, then the search's numbers
FAST = 1 << FAST_BITS
MAX_CODE, OFFSET, SYMBOLS = FAST, FAST + 18, FAST + 36
TABLE_SIZE = SYMBOLS + 256

PADDING = 256
"""Zeros appended to the data, in bytes: a corrupt block reads up to 63 codes of 26 bits too far, 205 bytes."""

CORRUPT = -1
MISSING = -10
"""Result `MISSING` − t: DC table t has no code for a difference that must be re-encoded."""


@njit(nogil=True, cache=True)
def unstuff(data, at, clean, starts):
    """Copy entropy-coded data without the stuffed zeros after 0xFF, up to the first marker that is no restart marker.

    Args:
        data: uint8: the file; the data begin at `at`.
        clean: uint8 [data.size − at + PADDING]: is written, zeros behind the data.
        starts: int64 [R + 1]: is written, where in `clean` each of R restart intervals begins, and the last one ends.

    Returns:
        Whether there are R intervals, with their markers in order.
    """
    source, target = np.int64(data.ctypes.data), np.int64(clean.ctypes.data)
    size, number, end = np.int64(0), np.int64(0), np.int64(data.size)
    starts[0] = 0
    while at < end:
        found = _memchr(source + at, 0xFF, end - at)
        stop = found - source if found else end
        _memcpy(target + size, source + at, stop - at)
        size += stop - at
        at = stop + 1
        while at < end and data[at] == 0xFF:  # may be repeated before a marker
            at += 1
        if at >= end:
            break
        following = data[at]
        at += 1
        if following == 0:
            clean[size] = 0xFF
            size += 1
        elif 0xD0 <= following <= 0xD7 and number < starts.size - 2 and following == 0xD0 + number % 8:
            number += 1
            starts[number] = size
        else:
            break
    clean[size : size + PADDING] = 0
    starts[number + 1] = size
    return number + 2 == starts.size


@njit(nogil=True, cache=True)
def _peek(clean, at):
    """Return at least 32 bits from bit `at` on, left-aligned in 64."""
    # unsigned, because numba checks a signed index for being negative
    byte = np.uint64(at) >> np.uint64(3)
    high = np.uint64(clean[byte]) << np.uint64(56) | np.uint64(clean[byte + np.uint64(1)]) << np.uint64(48)
    high |= np.uint64(clean[byte + np.uint64(2)]) << np.uint64(40)
    high |= np.uint64(clean[byte + np.uint64(3)]) << np.uint64(32)
    low = np.uint64(clean[byte + np.uint64(4)]) << np.uint64(24)
    low |= np.uint64(clean[byte + np.uint64(5)]) << np.uint64(16)
    low |= np.uint64(clean[byte + np.uint64(6)]) << np.uint64(8) | np.uint64(clean[byte + np.uint64(7)])
    return (high | low) << (np.uint64(at) & np.uint64(7))


@njit(nogil=True, cache=True)
def _lookup(table, bits):
    """Return length << 8 | symbol of the code that `bits` begin with; 0 if there is none."""
    entry = table[bits >> np.uint64(64 - FAST_BITS)]
    if entry:
        return np.int64(entry)
    word = np.int64(bits >> np.uint64(48))
    for length in range(FAST_BITS + 1, 17):
        if word < table[MAX_CODE + length]:
            number = (word >> (16 - length)) - table[OFFSET + length]
            return np.int64(length << 8 | table[SYMBOLS + number]) if 0 <= number < 256 else np.int64(0)
    return np.int64(0)


@njit(nogil=True, cache=True)
def _skip_ac(clean, at, table):
    """Return the first bit after a block's AC coefficients, which begin at bit `at`; −1 if they are corrupt."""
    bits, count, k = np.uint64(0), np.int64(0), np.int64(1)
    while k < 64:
        if count < 32:
            bits, count = _peek(clean, at), np.int64(57)
        entry = _lookup(table, bits)
        category, zeros = entry & 15, entry >> 4 & 15
        if not category:
            if zeros == 0:  # end of block
                return at + (entry >> 8) if entry else np.int64(-1)
            if zeros != 15:
                return np.int64(-1)
        length = (entry >> 8) + category
        bits <<= np.uint64(length)
        count -= length
        at += length
        k += zeros + 1
    return at if k == 64 else np.int64(-1)


@njit(nogil=True, cache=True)
def _has_ff(word):
    """Whether one of the four bytes is 0xFF."""
    inverse = ~word & np.uint64(0xFFFFFFFF)
    return (inverse - np.uint64(0x01010101)) & word & np.uint64(0x80808080) != 0


@njit(nogil=True, cache=True)
def _put(out, size, pending, waiting, value, length):
    """Append `length` ≤ 32 bits; up to 31 bits wait in `pending` until there are four whole bytes."""
    pending = pending << np.uint64(length) | value
    waiting += length
    if waiting >= 32:
        waiting -= 32
        word = pending >> np.uint64(waiting) & np.uint64(0xFFFFFFFF)
        if not _has_ff(word):
            at = np.uint64(size)
            out[at] = word >> np.uint64(24)
            out[at + np.uint64(1)] = word >> np.uint64(16) & np.uint64(0xFF)
            out[at + np.uint64(2)] = word >> np.uint64(8) & np.uint64(0xFF)
            out[at + np.uint64(3)] = word & np.uint64(0xFF)
            size += 4
        else:
            size = _put_bytes(out, size, word, 32)
    return size, pending, waiting


@njit(nogil=True, cache=True)
def _put_bytes(out, size, word, length):
    """Write the lowest `length` bits as whole bytes, with a stuffed 0 after each 0xFF; return the new size."""
    for shift in range(length - 8, -1, -8):
        byte = word >> np.uint64(shift) & np.uint64(0xFF)
        out[size] = byte
        size += 1
        if byte == 0xFF:
            out[size] = 0
            size += 1
    return size


@njit(nogil=True, cache=True)
def _copy_bits(clean, begin, end, out, size, pending, waiting):
    """Append bits [begin, end) of `clean`."""
    while begin < end:
        length = min(end - begin, 32)
        value = _peek(clean, begin) >> np.uint64(64 - length)
        size, pending, waiting = _put(out, size, pending, waiting, value, length)
        begin += length
    return size, pending, waiting


@njit(nogil=True, cache=True)
def _finish(out, size, pending, waiting):
    """Write the waiting bits, the rest of the last byte filled with ones (T.81, F.1.2.3); return the new size."""
    fill = -waiting % 8
    word = (pending + np.uint64(1) << np.uint64(fill)) - np.uint64(1)
    return _put_bytes(out, size, word, waiting + fill)


@njit(nogil=True, cache=True)
def recode(
    clean, starts, num_mcus, old_interval, interval, component, table_of, decoders, encoders, anew, out
):
    """Write the entropy-coded data with a restart marker every `interval` MCUs (0: none).

    Args:
        clean, starts: the data as `unstuff` leaves them.
        num_mcus: of the image.
        old_interval, interval: MCUs between restart markers, before and after; 0: no markers.
        component, table_of: int64 [K]: component and number of the DC table of each of the K blocks of an MCU.
        decoders: int32 [K, 2, TABLE_SIZE]: tables for DC and AC of each block.
        encoders: int32 [K, 12, 2]: codes for DC of each block.
        anew: bool [K]: whether all DC differences of a block are re-encoded, because its DC table has changed.
        out: uint8: is written; has room for the largest result (twice the data and 16 bytes per MCU).

    Returns:
        Bytes written; or a negative number, see `CORRUPT` and `MISSING`.
    """
    before, before_in_out = np.zeros(4, np.int64), np.zeros(4, np.int64)
    pending, waiting, size = np.uint64(0), np.int64(0), np.int64(0)
    at = copied = np.int64(0)
    end = 8 * starts[starts.size - 1]
    for mcu in range(num_mcus):
        if old_interval and mcu and mcu % old_interval == 0:
            number = mcu // old_interval
            if number >= starts.size - 1 or at > 8 * starts[number]:
                return CORRUPT
            size, pending, waiting = _copy_bits(clean, copied, at, out, size, pending, waiting)
            at = copied = 8 * starts[number]
            before[:] = 0
        if interval and mcu and mcu % interval == 0:
            size, pending, waiting = _copy_bits(clean, copied, at, out, size, pending, waiting)
            size = _finish(out, size, pending, waiting)
            out[size], out[size + 1] = 0xFF, 0xD0 + (mcu // interval - 1) % 8
            size, waiting, copied = size + 2, np.int64(0), at
            before_in_out[:] = 0
        for block in range(component.size):
            if at >= end:
                return CORRUPT
            bits = _peek(clean, at)
            entry = _lookup(decoders[block, 0], bits)
            length, category = entry >> 8, entry & 0xFF
            if not entry or category > 11:
                return CORRUPT
            # a difference of `category` bits; those that begin with 0 are negative (T.81, F.2.2.1)
            difference = np.int64(0)
            if category:
                difference = np.int64(bits << np.uint64(length) >> np.uint64(64 - category))
                if difference < 1 << (category - 1):
                    difference -= (1 << category) - 1
            c = component[block]
            before[c] += difference
            in_out = before[c] - before_in_out[c]
            before_in_out[c] = before[c]
            if in_out != difference or anew[block]:
                magnitude, width = abs(in_out), 0
                while magnitude >> width:
                    width += 1
                if width > 11:
                    return CORRUPT
                code_length = np.int64(encoders[block, width, 0])
                if not code_length:
                    return MISSING - table_of[block]
                size, pending, waiting = _copy_bits(clean, copied, at, out, size, pending, waiting)
                code = np.uint64(encoders[block, width, 1])
                size, pending, waiting = _put(out, size, pending, waiting, code, code_length)
                coded = np.uint64(in_out if in_out >= 0 else in_out + (1 << width) - 1)
                size, pending, waiting = _put(out, size, pending, waiting, coded, width)
                copied = at + length + category
            at = _skip_ac(clean, at + length + category, decoders[block, 1])
            if at < 0:
                return CORRUPT
    # the zeros appended to the data are not part of it
    if at > end:
        return CORRUPT
    size, pending, waiting = _copy_bits(clean, copied, at, out, size, pending, waiting)
    return _finish(out, size, pending, waiting)
