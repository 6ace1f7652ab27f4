"""Chooses the tiles of the NT-Xent kernels, by GPU and width, and splits the columns among programs.

A tile is right for a GPU when nothing spills, at least two programs fit on a multiprocessor (one multiplies while
the other exponentiates), and the rows that stay put are many enough that the L2 cache keeps up: a streamed row
of D values is used for 2·OWN·D operations forward and 4·ROWS·D backward.  The compile tests print the registers
and shared memory of every entry.
"""

from dataclasses import dataclass
from functools import cache

import torch

MAX_FUSED_WIDTH = 512
"""Maximum width D of the rows that the kernels take."""
MIN_FUSED_TEMPERATURE = 0.03
"""Minimum temperature that they take: below it, exp((s − 1)/τ) of a whole row may underflow in float32."""


@dataclass(frozen=True)
class Tiles:
    """Launch configuration of one of the two large kernels."""

    resident: int
    """Rows that a program keeps: OWN forward, ROWS backward."""
    streamed: int
    """Rows of a tile that passes by: OTHER forward, COLUMNS backward."""
    num_warps: int
    num_stages: int
    """Tiles in flight or in use."""
    programs: int
    """Programs that fit on a multiprocessor at once, by registers and shared memory."""


FORWARD_HOPPER = {
    128: Tiles(128, 64, 4, 3, programs=2),
    256: Tiles(128, 64, 8, 2, programs=1),
    512: Tiles(64, 64, 8, 2, programs=1),
}
BACKWARD_HOPPER = {
    64: Tiles(128, 64, 4, 3, programs=2),
    128: Tiles(128, 32, 4, 3, programs=2),  # 64 columns would spill
    256: Tiles(128, 64, 8, 2, programs=1),
    512: Tiles(64, 64, 8, 2, programs=1),
}
FORWARD = {
    128: Tiles(64, 64, 4, 2, programs=2),
    512: Tiles(64, 32, 4, 2, programs=1),
}
BACKWARD = {
    128: Tiles(64, 64, 4, 2, programs=2),
    256: Tiles(64, 32, 8, 2, programs=1),
    512: Tiles(32, 32, 8, 2, programs=1),
}
"""Keyed by the widest D that an entry serves.  Without "HOPPER": any GPU of compute capability 8.0 or more, within
the 99 KB of shared memory that the smallest of them have; not tuned for the others."""

MAX_RESIDENT = 128
"""Maximum number of rows that a tile extends beyond its first row."""

PROLOGUE_TILES = 2
"""Cost of starting and ending a program, in tiles: it counts against many short programs."""


def choose_tiles(width: int, capability: tuple[int, int]) -> tuple[Tiles, Tiles]:
    """Return forward and backward tiles for rows of `width` (16 to 512) on a GPU of this compute capability."""
    tables = (FORWARD_HOPPER, BACKWARD_HOPPER) if capability[0] == 9 else (FORWARD, BACKWARD)
    forward, backward = (
        next(tiles for widest, tiles in table.items() if width <= widest) for table in tables
    )
    return forward, backward


@cache
def choose_splits(num_blocks: int, num_tiles: int, slots: int) -> int:
    """Return the number of ranges that each block's tiles are split into, so that the programs fill the GPU's slots.

    It minimises waves of programs × length of a program; there are num_blocks·splits programs:

    >>> choose_splits(num_blocks=64, num_tiles=256, slots=264)      # 256 programs of 64 tiles: one wave
    4
    >>> choose_splits(num_blocks=512, num_tiles=2048, slots=264)    # there are blocks enough
    1
    """

    def cost(splits: int) -> int:
        waves = -(-num_blocks * splits // slots)
        return waves * (-(-num_tiles // splits) + PROLOGUE_TILES)

    return min(range(1, min(num_tiles, 16) + 1), key=cost)


@cache
def gpu_facts(device: torch.device) -> tuple[tuple[int, int], int]:
    """Return compute capability and number of multiprocessors; a small Hopper's if the interpreter runs on a CPU."""
    if device.type != "cuda":
        return (9, 0), 8
    properties = torch.cuda.get_device_properties(device)
    return (properties.major, properties.minor), properties.multi_processor_count
