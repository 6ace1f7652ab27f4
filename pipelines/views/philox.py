"""Philox4x32-10, the counter-based random generator behind every drawn number.

Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).  A counter-based
generator is a pure function (counter, key) -> numbers, so a view's numbers depend on nothing but its
coordinates: no state to save, to advance or to split between workers, ranks and engines.
"""

import numpy as np

_MULTIPLIER = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)


def philox4x32(counter: tuple, key: tuple[int, int]) -> tuple[np.ndarray, ...]:
    """Return four 32-bit words per counter.

    Args:
        counter: four arrays or integers in [0, 2³²), broadcast against each other: c0, c1, c2, c3.
        key: two integers in [0, 2³²).

    Returns:
        Four uint64 arrays of the broadcast shape, each value in [0, 2³²).

    >>> [hex(int(word)) for word in philox4x32((0, 0, 0, 0), (0, 0))]
    ['0x6627e8d5', '0xe169c58d', '0xbc57ac4c', '0x9b00dbd8']
    """
    c0, c1, c2, c3 = np.broadcast_arrays(*(np.asarray(word, np.uint64) for word in counter))
    k0, k1 = key
    for _ in range(10):
        product0 = c0 * _MULTIPLIER[0]
        product1 = c2 * _MULTIPLIER[1]
        c0, c1, c2, c3 = (
            (product1 >> _SHIFT) ^ c1 ^ np.uint64(k0),
            product1 & _LOW,
            (product0 >> _SHIFT) ^ c3 ^ np.uint64(k1),
            product0 & _LOW,
        )
        k0, k1 = (k0 + _WEYL[0]) & 0xFFFFFFFF, (k1 + _WEYL[1]) & 0xFFFFFFFF
    return c0, c1, c2, c3


def split_seed(seed: int) -> tuple[int, int]:
    """Return a 64-bit seed as a Philox key (low word, high word).

    Raises:
        ValueError: the seed is negative or needs more than 64 bits.
    """
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed must be in [0, 2**64), got {seed}")
    return seed & 0xFFFFFFFF, seed >> 32


def uniform(word: np.ndarray) -> np.ndarray:
    """Return float64 in [0, 1) from the upper 24 bits of each word: u = (x >> 8)·2⁻²⁴."""
    return (word >> np.uint64(8)).astype(np.float64) * 2.0**-24
