"""Philox4x32-10 against the known answers published with Random123 (kat_vectors)."""

import numpy as np
import pytest

from pipelines.views.philox import philox4x32, split_seed, uniform

ONES = 0xFFFFFFFF
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ONES, ONES, ONES, ONES), (ONES, ONES), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN_ANSWERS)
def test_known_answers(counter, key, words):
    assert tuple(int(word) for word in philox4x32(counter, key)) == words


def test_counters_broadcast():
    rows = philox4x32((0, np.arange(3)[:, None], np.arange(5), 7), (1, 2))
    assert rows[0].shape == (3, 5)
    assert int(rows[2][1, 4]) == int(philox4x32((0, 1, 4, 7), (1, 2))[2])


def test_uniform_takes_the_upper_24_bits():
    words = np.array([0, 255, 256, 2**32 - 1], np.uint64)
    assert uniform(words).tolist() == [0.0, 0.0, 2.0**-24, 1 - 2.0**-24]


def test_seed_is_64_bits():
    assert split_seed(2**64 - 1) == (ONES, ONES)
    assert split_seed(5 << 32 | 3) == (3, 5)
    for seed in (-1, 2**64):
        with pytest.raises(ValueError, match="seed"):
            split_seed(seed)
