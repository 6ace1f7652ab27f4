"""The encoder writes what Pillow writes, from any thread and any process."""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from support.jpegs import draw_pixels, save

from pipelines.convert.jpeg_encoder import encode_jpeg

SIZES = [(1, 1), (16, 16), (17, 33), (375, 500), (600, 40), (900, 1300)]


def expected(pixels: np.ndarray, blocks: int) -> bytes:
    return save(pixels, quality=90, subsampling="4:2:0", restart_marker_blocks=blocks)


@pytest.mark.parametrize("size", SIZES)
def test_bytes_are_pillows(size):
    pixels = draw_pixels(np.random.default_rng(0), *size)
    assert encode_jpeg(pixels, 90, "auto") == encode_jpeg(pixels, 90, 1) == expected(pixels, 1)
    assert encode_jpeg(pixels, 90, "none") == expected(pixels, 0)


def test_a_smaller_file_after_a_larger_one_ends_where_it_ends():
    small, large = (draw_pixels(np.random.default_rng(0), side, side) for side in (20, 200))
    encode_jpeg(large, 90, 1)
    assert encode_jpeg(small, 90, 1) == expected(small, 1)


def test_threads_do_not_share_a_file():
    images = [draw_pixels(np.random.default_rng(n), 50 + n, 70) for n in range(64)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda pixels: encode_jpeg(pixels, 90, 1), images))
    assert found == [expected(pixels, 1) for pixels in images]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_does_not_share_its_parents_file():
    images = [draw_pixels(np.random.default_rng(n), 60, 70) for n in range(100)]
    files = [expected(pixels, 1) for pixels in images]
    assert encode_jpeg(images[0], 90, 1) == files[0]
    child = os.fork()
    # both encode at the same time, and in another order
    if not child:
        right = [encode_jpeg(pixels, 90, 1) for pixels in images[::-1]] == files[::-1]
        os._exit(0 if right else 1)
    assert [encode_jpeg(pixels, 90, 1) for pixels in images] == files
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
