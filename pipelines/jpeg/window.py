"""Windows of a JPEG: copy the smallest part of the file that a decoder needs for a rectangle.

In a JPEG with restart markers every few MCUs (ITU-T T.81, B.2.4.4) each restart interval decodes independently.  The
intervals inside a rectangle are copied in order, with their markers renumbered, after a header with the height and
width of the rectangle.  The result is a valid JPEG of just the rectangle:

    ┌ whole image ────────┐      header, SOF height and width of the window
    │ . . . . . . . . . . │      interval 12 RST0 interval 13 RST1
    │ . . 12 13 14 . . .  │  ──▶ interval 14 RST2 interval 22 RST3
    │ . . 22 23 24 . . .  │      interval 23 RST4 interval 24 EOI
    └─────────────────────┘

A decoder gives the same pixels as for the whole image, except for the outermost pixels at the cut edges, where
the chroma samples for the interpolation are missing.  Therefore the window has `MARGIN` more pixels on each side.

Restart intervals are found by searching for 0xFF bytes (`memchr`), which takes about 0.3 % of a decode.  Reading an
index from the file would cost more than it saves, and the index could be wrong.

Everything in this file treats the payload as untrusted.  No window is cut from an unusual or corrupt JPEG: the decoder
gets the whole image and reports the error.  Functions call only functions of this file, because numba's cache does not
notice an edit in another file.
"""

import numpy as np
from numba import types
from numba.core.typing import signature

from pipelines.beton.layout import JPEG_MODE
from pipelines.system.jit import njit

MARGIN = 2
"""Number of pixels decoded around the boxes, because chroma is interpolated from its neighbors (h2v1, h2v2, h1v2)."""
MIN_WIDTH = 22
"""Minimum width of a window in pixels, unless the image is narrower.  The crop kernel reads 64 bytes of a row at once;
for narrower images it uses a scalar fallback, which rounds differently."""
MAX_HEADER_SEGMENTS = 200
"""Maximum number of marker segments before the scan; a real file has about ten."""

_DHT, _RST0, _SOI, _EOI, _SOS, _DQT, _DRI, _APP0, _APP14 = (
    0xC4,
    0xD0,
    0xD8,
    0xD9,
    0xDA,
    0xDB,
    0xDD,
    0xE0,
    0xEE,
)

# addresses are signed here, because numba adds a signed and an unsigned integer as floats
_memchr = types.ExternalFunction("memchr", signature(types.intp, types.intp, types.intc, types.intp))
_memcpy = types.ExternalFunction("memcpy", signature(types.intp, types.intp, types.intp, types.intp))

HEIGHT, WIDTH, INTERVAL, MCU_HEIGHT, MCU_WIDTH, SCAN, FRAME = range(7)
"""Indices into the array `layout` that `read_layout` fills."""


@njit(nogil=True, cache=True)
def read_layout(payload, layout):
    """Read the header of a sequential Huffman JPEG whose only scan has all components.

    Args:
        payload: uint8 [n]: the file.
        layout: output, int64 [7]: height and width of the image in pixels; MCUs per restart interval (0 without restart
            intervals); height and width of an MCU in pixels; first byte of the entropy-coded data; first byte of the
            frame header.

    Returns:
        Whether the file is such a JPEG.
    """
    size = payload.size
    if size < 4 or payload[0] != 0xFF or payload[1] != _SOI:
        return False
    layout[:] = 0
    at, components = np.int64(2), np.int64(0)
    for _ in range(MAX_HEADER_SEGMENTS):
        if at + 4 > size or payload[at] != 0xFF:
            return False
        marker = payload[at + 1]
        length = np.int64(payload[at + 2]) << 8 | np.int64(payload[at + 3])
        end = at + 2 + length
        if length < 2 or end > size:
            return False
        if marker == 0xC0 or marker == 0xC1:
            components = np.int64(payload[at + 9]) if length >= 8 else np.int64(0)
            if (
                layout[FRAME]
                or payload[at + 4] != 8
                or components not in (1, 3)
                or length != 8 + 3 * components
            ):
                return False
            layout[FRAME] = at
            layout[HEIGHT] = np.int64(payload[at + 5]) << 8 | np.int64(payload[at + 6])
            layout[WIDTH] = np.int64(payload[at + 7]) << 8 | np.int64(payload[at + 8])
            tallest, widest = np.int64(1), np.int64(1)
            for component in range(components):
                sampling = np.int64(payload[at + 11 + 3 * component])
                horizontal, vertical = sampling >> 4, sampling & 15
                if not (1 <= horizontal <= 4 and 1 <= vertical <= 4):
                    return False
                # the MCU of a scan of one component is one block, whatever its sampling factors
                if components > 1:
                    tallest = vertical if vertical > tallest else tallest
                    widest = horizontal if horizontal > widest else widest
            layout[MCU_HEIGHT], layout[MCU_WIDTH] = 8 * tallest, 8 * widest
        elif marker == _DRI:
            if length != 4:
                return False
            layout[INTERVAL] = np.int64(payload[at + 4]) << 8 | np.int64(payload[at + 5])
        elif marker == _SOS:
            layout[SCAN] = end
            scanned = np.int64(payload[at + 4]) if length >= 3 else 0
            return bool(
                components
                and scanned == components
                and length == 6 + 2 * components
                and layout[HEIGHT] > 0
                and layout[WIDTH] > 0
            )
        elif 0xC0 <= marker <= 0xCF and marker != _DHT:  # progressive, arithmetic-coded, lossless …
            return False
        at = end
    return False


@njit(nogil=True, cache=True)
def cut(payload, top, left, bottom, right, out, window):
    """Copy the rectangle of restart intervals that contains a box and its margin from a JPEG.

    Args:
        payload: uint8 [n]: a JPEG file.
        top, left, bottom, right: the box in pixels; row `bottom` and column `right` are excluded.
        out: output, uint8 [n] or more: the JPEG of the window.
        window: output, int64 [4]: the window's top, left, height and width in pixels of the image.

    Returns:
        Number of bytes written; 0 if the caller must decode the whole image, because it has no or too few restart
        markers, because the window is the whole image, or because the image is corrupt.
    """
    layout = np.empty(7, np.int64)
    if out.size < payload.size or not read_layout(payload, layout):
        return 0
    image_height, image_width, interval = layout[HEIGHT], layout[WIDTH], layout[INTERVAL]
    if not interval:
        return 0
    unit_height, unit_width = layout[MCU_HEIGHT], interval * layout[MCU_WIDTH]
    mcus = (image_width + layout[MCU_WIDTH] - 1) // layout[MCU_WIDTH]
    if mcus % interval:  # an interval would continue in the next row
        return 0
    columns, rows = mcus // interval, (image_height + unit_height - 1) // unit_height
    first_column, first_row = max(left - MARGIN, 0) // unit_width, max(top - MARGIN, 0) // unit_height
    end_column = min((right + MARGIN + unit_width - 1) // unit_width, columns)
    end_row = min((bottom + MARGIN + unit_height - 1) // unit_height, rows)
    if first_column >= end_column or first_row >= end_row:
        return 0
    # 22 pixels also have more than two chroma samples in a row: libjpeg does not interpolate two or fewer
    while min(end_column * unit_width, image_width) - first_column * unit_width < MIN_WIDTH:
        if first_column:
            first_column -= 1
        elif end_column < columns:
            end_column += 1
        else:
            break
    if end_column - first_column == columns and end_row - first_row == rows:
        return 0
    window[0], window[1] = first_row * unit_height, first_column * unit_width
    window[2] = min(end_row * unit_height, image_height) - window[0]
    window[3] = min(end_column * unit_width, image_width) - window[1]
    size = _copy_header(payload, layout, window[2], window[3], out)

    source, target = np.int64(payload.ctypes.data), np.int64(out.ctypes.data)
    last = (end_row - 1) * columns + end_column - 1
    row = column = written = np.int64(0)
    begin = at = layout[SCAN]
    for number in range(last + 1):
        at = _interval_end(payload, at)
        if at < 0:
            return 0
        marker = payload[at + 1]
        if marker != _RST0 + number % 8 and (marker != _EOI or number != columns * rows - 1):
            return 0
        if row >= first_row and first_column <= column < end_column:
            if written:
                out[size], out[size + 1] = 0xFF, _RST0 + (written - 1) % 8
                size += 2
            _memcpy(target + size, source + begin, at - begin)
            size += at - begin
            written += 1
        at += 2
        begin = at
        column += 1
        if column == columns:
            column = np.int64(0)
            row += 1
    out[size], out[size + 1] = 0xFF, _EOI
    return size + 2


def cut_window(
    jpeg: np.ndarray, top: int, left: int, bottom: int, right: int
) -> tuple[np.ndarray, tuple[int, int]]:
    """Return the JPEG of the window that contains a box, and the position (top, left) of the window in the image.

    Args:
        jpeg: uint8 [n]: a JPEG file.
        top, left, bottom, right: the box in pixels; row `bottom` and column `right` are excluded.

    Returns:
        The JPEG and position of the window; `jpeg` itself and (0, 0) if the whole image must be decoded.
    """
    out, window = np.empty(jpeg.size, np.uint8), np.empty(4, np.int64)
    size = cut(jpeg, top, left, bottom, right, out, window)
    return (out[:size], (int(window[0]), int(window[1]))) if size else (jpeg, (0, 0))


@njit(nogil=True, cache=True)
def _copy_header(payload, layout, height, width, out):
    """Write the header with another image size and without segments that a decoder does not need; return its length.

    `read_layout` has checked the segments up to the scan.
    """
    out[0], out[1] = 0xFF, _SOI
    at, size = np.int64(2), np.int64(2)
    while at < layout[SCAN]:
        marker = payload[at + 1]
        end = at + 2 + (np.int64(payload[at + 2]) << 8 | np.int64(payload[at + 3]))
        needed = marker in (_DQT, _DHT, _DRI, _SOS) or at == layout[FRAME]
        # decoders need the JFIF and Adobe segments, which specify the color space
        if needed or marker in (_APP0, _APP14):
            out[size : size + end - at] = payload[at:end]
            if at == layout[FRAME]:
                out[size + 5], out[size + 6] = height >> 8, height & 0xFF
                out[size + 7], out[size + 8] = width >> 8, width & 0xFF
            size += end - at
        at = end
    return size


@njit(nogil=True, cache=True)
def _interval_end(payload, at):
    """Return the position of the first marker at or after `at`; −1 if there is none.

    0xFF 0x00 is a data byte, and 0xFF may be repeated before a marker (T.81, B.1.1.2).
    """
    source, end = np.int64(payload.ctypes.data), payload.size - 1
    while at < end:
        found = _memchr(source + at, 0xFF, end - at)
        if not found:
            return np.int64(-1)
        at = found - source
        following = payload[at + 1]
        if following != 0 and following != 0xFF:
            return at
        at += 2 if following == 0 else 1
    return np.int64(-1)


@njit(nogil=True, cache=True)
def cut_samples(
    low, high, data, offsets, sizes, modes, heights, widths, indices, boxes, out, places, windows
):
    """Cut the window that contains all boxes of a row, for each of the rows [low, high) of a batch.

    Args:
        low, high: the rows.
        data: uint8: the file.
        offsets, sizes, modes, heights, widths: int [N]: columns of a reader, which has checked them against `data`.
        indices: int64 [B]: sample of each row.
        boxes: int32 [V, B, 4]: top, left, height, width in pixels of the image.
        out: output, uint8, flat: the JPEGs of the windows, one after the other, as many as fit.
        places: output, int64 [high − low, 3] or more: what to decode: 1, first byte and size of a JPEG in `out`;
            or 0, first byte and size of the whole image in `data`.
        windows: output, int32 [high − low, 4] or more: top, left, height, width of the part to decode.
    """
    end = np.int64(0)
    for row in range(low, high):
        sample = indices[row]
        offset, size = np.int64(offsets[sample]), np.int64(sizes[sample])
        place, window = places[row - low], windows[row - low]
        place[0], place[1], place[2] = 0, offset, size
        window[0], window[1], window[2], window[3] = 0, 0, heights[sample], widths[sample]
        if modes[sample] == JPEG_MODE:
            written = cut_around(data[offset : offset + size], boxes[:, row], out[end:], window)
            if written:
                place[0], place[1], place[2] = 1, end, written
                end += written


@njit(nogil=True, cache=True)
def cut_around(payload, boxes, out, window):
    """Cut the window that contains all boxes of an image; return the size of its JPEG, or 0 to decode the whole image.

    Args:
        payload: uint8 [n]: the JPEG.
        boxes: int32 [V, 4]: top, left, height, width in pixels.
        out: output, uint8 [n] or more: the JPEG of the window.
        window: integers [4]: 0, 0, height and width of the image according to the metadata; replaced by top, left,
            height and width of the window if there is one.
    """
    top, left, bottom, right = np.int64(window[2]), np.int64(window[3]), np.int64(0), np.int64(0)
    for v in range(boxes.shape[0]):
        box_top, box_left = np.int64(boxes[v, 0]), np.int64(boxes[v, 1])
        top, left = min(top, box_top), min(left, box_left)
        bottom, right = max(bottom, box_top + boxes[v, 2]), max(right, box_left + boxes[v, 3])
    found = np.empty(4, np.int64)
    size = cut(payload, top, left, bottom, right, out, found)
    # a window outside the metadata's size is not used: the decoder then rejects the whole image
    if size and found[0] + found[2] <= window[2] and found[1] + found[3] <= window[3]:
        window[:] = found
        return size
    return np.int64(0)


@njit(nogil=True, cache=True)
def _has_intervals(payload, layout):
    return read_layout(payload, layout) and layout[INTERVAL] > 0


def has_restarts(jpeg: np.ndarray) -> bool:
    """Return whether a JPEG, uint8 [n], has restart intervals, which windows can be cut from."""
    return bool(_has_intervals(jpeg, np.empty(7, np.int64)))
