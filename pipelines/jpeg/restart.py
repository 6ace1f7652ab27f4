"""Adds restart markers to a JPEG without loss: its coefficients stay as they are.

    DC of a block:  difference to the block before   ──▶  at the beginning of an interval, to 0: re-encoded
    AC of a block:  Huffman codes and their bits     ──▶  copied, bit by bit

Source: ITU-T T.81, F.1.2 and F.2.2 (Huffman coding of baseline JPEGs), B.2.4.4 (restart intervals), E.1.4.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from pipelines.jpeg.entropy import (
    FAST_BITS,
    MAX_CODE,
    MISSING,
    OFFSET,
    PADDING,
    SYMBOLS,
    TABLE_SIZE,
    recode,
    unstuff,
)
from pipelines.jpeg.interval import Restart, TranscodeError, restart_interval
from pipelines.jpeg.window import FRAME, HEIGHT, INTERVAL, MCU_HEIGHT, MCU_WIDTH, SCAN, WIDTH, read_layout

_DHT, _DRI, _SOS = 0xC4, 0xDD, 0xDA
# T.81, table K.3: lengths and symbols of the typical luminance DC table, which codes every difference of 8-bit images
_TYPICAL_DC = bytes([0, 1, 5, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0]) + bytes(range(12))


class _Huffman(NamedTuple):
    """One Huffman table of a JPEG, as its DHT segment has it."""

    lengths: bytes
    """Number of codes of 1 … 16 bits."""
    symbols: bytes
    """The symbols, shortest codes first."""

    def segment(self, table: int) -> bytes:
        """Return the DHT segment that defines it as DC table `table`."""
        body = bytes([table]) + self.lengths + self.symbols
        return bytes([0xFF, _DHT]) + (2 + len(body)).to_bytes(2, "big") + body


# cached, because most files have the same typical tables: few encoders optimise them
@lru_cache(64)
def _decoding(huffman: _Huffman) -> np.ndarray:
    """Return a decoding table for `recode`: int32 [TABLE_SIZE].

    Entry c < 2^FAST_BITS is length << 8 | symbol of the code that the bits c begin with, 0 for a longer code.
    Then come, for each length, the first code that is too large, left-aligned to 16 bits, and what to subtract from
    a code for the number of its symbol; then the symbols.

    Raises:
        TranscodeError: there are more codes than bits allow.
    """
    table = np.zeros(TABLE_SIZE, np.int32)
    code = number = 0
    for length, count in enumerate(huffman.lengths, 1):
        table[OFFSET + length] = code - number
        if code + count > 1 << length:
            raise TranscodeError("a Huffman table has more codes than bits allow")
        for _ in range(count if length <= FAST_BITS else 0):
            low = code << (FAST_BITS - length)
            table[low : low + (1 << (FAST_BITS - length))] = length << 8 | huffman.symbols[number]
            code, number = code + 1, number + 1
        if length > FAST_BITS:
            code, number = code + count, number + count
        table[MAX_CODE + length] = code << (16 - length) if count else 0
        code <<= 1
    table[SYMBOLS : SYMBOLS + number] = np.frombuffer(huffman.symbols, np.uint8)
    return table


@lru_cache(64)
def _encoding(huffman: _Huffman) -> np.ndarray:
    """Return the codes of the DC categories 0 … 11: int32 [12, 2], length (0: no code) and code."""
    codes = np.zeros((12, 2), np.int32)
    code = number = 0
    for length, count in enumerate(huffman.lengths, 1):
        for category in huffman.symbols[number : number + count]:
            if category < 12:
                codes[category] = length, code
            code += 1
        number += count
        code <<= 1
    return codes


_TYPICAL = _Huffman(_TYPICAL_DC[:16], _TYPICAL_DC[16:])


def add_restarts(jpeg: bytes, restart: Restart = "auto") -> bytes:
    """Return the same image with restart markers, coefficient by coefficient.

    Segments before the scan are kept (EXIF and color profile, too); data after the image are dropped.

    Args:
        jpeg: a baseline JPEG file of one scan, gray or of three components; existing restart markers are replaced.
        restart: MCUs per interval, see `Restart`.

    Raises:
        TranscodeError: it is corrupt, or of another kind (progressive, arithmetic-coded, CMYK, several scans).
    """
    payload = np.frombuffer(jpeg, np.uint8)
    layout = np.zeros(7, np.int64)
    if not read_layout(payload, layout):
        raise TranscodeError("no baseline JPEG of one scan, gray or of three components")
    mcus_per_row = -(-layout[WIDTH] // layout[MCU_WIDTH])
    num_mcus = int(mcus_per_row * -(-layout[HEIGHT] // layout[MCU_HEIGHT]))
    interval = restart_interval(restart, int(mcus_per_row), int(layout[MCU_WIDTH]))
    tables = _huffman_tables(jpeg, int(layout[SCAN]))
    blocks = _blocks(jpeg, layout)
    clean = np.empty(len(jpeg) - int(layout[SCAN]) + PADDING, np.uint8)
    old_interval = int(layout[INTERVAL])
    starts = np.zeros((-(-num_mcus // old_interval) if old_interval else 1) + 1, np.int64)
    if not unstuff(payload, int(layout[SCAN]), clean, starts):
        raise TranscodeError("its restart markers are missing or not in order")
    # at most two bytes for each byte, plus a marker and up to ten longer DC codes per MCU
    out = np.empty(2 * len(clean) + 64 * num_mcus, np.uint8)

    replaced: set[int] = set()
    while True:
        dc = {t: _decoding(table) for (kind, t), table in tables.items() if kind == 0}
        ac = {t: _decoding(table) for (kind, t), table in tables.items() if kind == 1}
        try:
            decoders = np.stack([np.stack([dc[d], ac[a]]) for _, d, a in blocks])
        except KeyError:
            raise TranscodeError("a Huffman table is missing") from None
        encoders = np.stack([_encoding(_TYPICAL if d in replaced else tables[0, d]) for _, d, _ in blocks])
        component = np.array([c for c, _, _ in blocks], np.int64)
        table_of = np.array([d for _, d, _ in blocks], np.int64)
        anew = np.array([d in replaced for _, d, _ in blocks])
        size = recode(
            *(clean, starts, num_mcus, old_interval, interval),
            *(component, table_of, decoders, encoders, anew, out),
        )
        if size > MISSING:
            break
        replaced.add(MISSING - size)
    if size < 0:
        raise TranscodeError("its entropy-coded data are corrupt or truncated")
    header = _header(jpeg, int(layout[SCAN]), interval, sorted(replaced))
    return header + out[:size].tobytes() + b"\xff\xd9"


def _segments(jpeg: bytes, scan: int) -> list[tuple[int, int, int]]:
    """Return marker, first byte and end of each segment before the scan's data; `read_layout` has checked them."""
    segments, at = [], 2
    while at < scan:
        end = at + 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
        segments.append((jpeg[at + 1], at, end))
        at = end
    return segments


def _huffman_tables(jpeg: bytes, scan: int) -> dict[tuple[int, int], _Huffman]:
    """Return the tables in force at the scan, by class (0 DC, 1 AC) and number."""
    tables = {}
    for marker, at, end in _segments(jpeg, scan):
        at += 4
        while marker == _DHT and at < end:
            kind, number = jpeg[at] >> 4, jpeg[at] & 15
            lengths = jpeg[at + 1 : at + 17].ljust(16, b"\0")
            count = sum(lengths)
            if at + 17 + count > end or count > 256 or kind > 1 or number > 3:
                raise TranscodeError("a Huffman table reaches beyond its segment")
            tables[kind, number] = _Huffman(lengths, jpeg[at + 17 : at + 17 + count])
            at += 17 + count
    return tables


def _blocks(jpeg: bytes, layout: np.ndarray) -> list[tuple[int, int, int]]:
    """Return component, DC table and AC table of each block of an MCU, in the order of the scan."""
    frame = int(layout[FRAME])
    components = [jpeg[frame + 10 + 3 * c : frame + 12 + 3 * c] for c in range(jpeg[frame + 9])]
    sos = next(at for marker, at, _ in _segments(jpeg, int(layout[SCAN])) if marker == _SOS)
    blocks = []
    for c, (identity, sampling) in enumerate(components):
        selector, tables = jpeg[sos + 5 + 2 * c : sos + 7 + 2 * c]
        if selector != identity:
            raise TranscodeError("the components of its scan are in another order than those of its frame")
        count = (sampling >> 4) * (sampling & 15) if len(components) > 1 else 1
        blocks += [(c, tables >> 4, tables & 15)] * count
    if len(blocks) > 10:
        raise TranscodeError("an MCU has more than ten blocks")
    return blocks


def _header(jpeg: bytes, scan: int, interval: int, replaced: list[int]) -> bytes:
    """Return everything before the entropy-coded data, with another restart interval and further DC tables."""
    parts = [jpeg[:2]]
    for marker, at, end in _segments(jpeg, scan):
        if marker == _SOS:
            parts += [_TYPICAL.segment(table) for table in replaced]
            if interval:
                parts.append(bytes([0xFF, _DRI, 0, 4, interval >> 8, interval & 0xFF]))
        if marker != _DRI:
            parts.append(jpeg[at:end])
    return b"".join(parts)
