"""Seeded mutations of a file's bytes: a pure function of the seed and a number, so that any case can be repeated."""

import random
from collections.abc import Sequence

Field = tuple[int, int]
"""First byte and length of a place where a mutation is likely to matter, such as a header's number."""


def mutate(data: bytes, seed: int, number: int, fields: Sequence[Field] = ()) -> bytes:
    """Return `data` with one to three mutations: flips, overwritten fields, insertions, deletions, truncation.

    Args:
        data: the whole file.
        seed: of the series of cases.
        number: of the case in the series; 0 is mutated like any other.
        fields: places that three quarters of the mutations hit; without any, all bytes are alike.
    """
    rng = random.Random(f"{seed}/{number}")
    mutated = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        if fields and rng.random() < 0.75:
            start, length = rng.choice(fields)
        else:
            start, length = rng.randrange(len(mutated) + 1), rng.choice((1, 2, 4, 8, 12))
        rng.choice(_MUTATIONS)(rng, mutated, min(start, len(mutated)), length)
    return bytes(mutated)


def _flip_bit(rng: random.Random, data: bytearray, start: int, length: int) -> None:
    if data:
        at = min(start + rng.randrange(length), len(data) - 1)
        data[at] ^= 1 << rng.randrange(8)


def _overwrite(rng: random.Random, data: bytearray, start: int, length: int) -> None:
    """Overwrite a field with a value that is hard for parsers; the file keeps its length."""
    value = _awkward_value(rng, length)
    room = max(0, min(length, len(data) - start))
    data[start : start + room] = value[:room]


def _insert(rng: random.Random, data: bytearray, start: int, length: int) -> None:
    size = rng.choice((1, length, 512, 4096))
    data[start:start] = rng.choice((bytes(size), b"\xff" * size, rng.randbytes(size), bytes(data[:size])))


def _delete(rng: random.Random, data: bytearray, start: int, length: int) -> None:
    del data[start : start + rng.choice((1, length, 512))]


def _truncate(rng: random.Random, data: bytearray, start: int, length: int) -> None:
    del data[start + rng.randrange(length + 1) :]


def _copy_within(rng: random.Random, data: bytearray, start: int, length: int) -> None:
    """Overwrite a field with other bytes of the file, of the right form in the wrong place."""
    origin = rng.randrange(max(1, len(data) - length))
    data[start : start + length] = data[origin : origin + length]


_MUTATIONS = (
    _flip_bit,
    _flip_bit,
    _overwrite,
    _overwrite,
    _overwrite,
    _insert,
    _delete,
    _truncate,
    _copy_within,
)


def _awkward_value(rng: random.Random, length: int) -> bytes:
    """Return extreme numbers, in binary and in digits, invalid characters, and nesting."""
    integer = rng.choice((0, 1, -1, 1 << 15, 1 << 31, (1 << 31) - 1, 1 << 40, 1 << 62, (1 << 63) - 1, -512))
    wrapped = integer % (1 << 8 * length)
    return rng.choice(
        (
            wrapped.to_bytes(length, "little"),
            wrapped.to_bytes(length, "big"),
            b"\x80" + (wrapped >> 8).to_bytes(length - 1, "big"),  # base 256, as tars have it
            b"\xff" * length,
            b"9" * length,
            b"7" * (length - 1) + b"\0",
            b"-1 ".ljust(length),
            b"NaN".ljust(length),
            b"[" * length,
            b'"' * length,
            b"\xed\xa0\x80" * (length // 3 + 1),  # a lone surrogate
            b"\x1b[31m".ljust(length, b"\n"),
            b"../" * (length // 3 + 1),
            rng.randbytes(length),
        )
    )[:length]
