"""torch's number of threads, a setting of the whole process."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch


@contextmanager
def torch_threads(number: int) -> Iterator[None]:
    """Let torch compute with `number` threads inside the block; afterwards the former number is restored."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def at_most_threads(number: int) -> AbstractContextManager[None]:
    """Let torch compute with at most `number` threads inside the block, never more than before it."""
    return torch_threads(min(torch.get_num_threads(), number))
