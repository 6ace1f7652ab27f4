"""torch's threads, which are one setting of the whole process."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch


@contextmanager
def torch_threads(number: int) -> Iterator[None]:
    """torch computes with `number` threads inside the block, and with as many as before after it."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def at_most_threads(number: int) -> AbstractContextManager[None]:
    """The same, with no more than there are already."""
    return torch_threads(min(torch.get_num_threads(), number))
