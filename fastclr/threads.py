"""torch's threads, which are one setting of the whole process."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def at_most_threads(number: int) -> Iterator[None]:
    """torch computes with no more than `number` threads inside the block, and with as many as before after it."""
    before = torch.get_num_threads()
    torch.set_num_threads(min(before, number))
    try:
        yield
    finally:
        torch.set_num_threads(before)
