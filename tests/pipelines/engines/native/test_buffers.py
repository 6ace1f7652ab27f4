"""BufferPool reuses memory when nothing refers to it any more, and never before."""

import numpy as np
import pytest
import torch

from pipelines.engines.native.buffers import BufferPool

SHAPE = (2, 3, 5, 7, 3)


def address(array: np.ndarray) -> int:
    return array.ctypes.data


def test_aligned_and_whole():
    array = BufferPool(1).acquire(SHAPE, np.float32)
    assert (array.shape, array.dtype, array.flags.c_contiguous) == (SHAPE, np.float32, True)
    assert address(array) % 64 == 0


def test_used_again_when_let_go():
    memory = BufferPool(2)
    array = memory.acquire(SHAPE, np.float32)
    where = address(array)
    del array
    assert address(memory.acquire(SHAPE, np.float32)) == where


@pytest.mark.parametrize(
    "look",
    [
        lambda array: array,
        lambda array: array[1:, :, 2],
        lambda array: array.view(np.uint8).reshape(-1)[5:],
        torch.from_numpy,
        lambda array: torch.from_numpy(array).permute(0, 1, 4, 2, 3)[0, 1:2],
        lambda array: torch.from_numpy(array)[1].numpy()[0],
        lambda array: torch.from_numpy(array).detach().view(torch.int32),
        lambda array: memoryview(array)[1:],
        lambda array: torch.utils.dlpack.from_dlpack(torch.from_numpy(array)),
    ],
)
def test_not_while_anybody_looks(look):
    memory = BufferPool(2)
    array = memory.acquire(SHAPE, np.float32)
    where = address(array)
    kept = look(array)
    del array
    other = memory.acquire(SHAPE, np.float32)
    assert address(other) != where
    del kept
    assert address(memory.acquire(SHAPE, np.float32)) == where


def test_keeps_only_so_much():
    memory = BufferPool(2)
    arrays = [memory.acquire(SHAPE, np.float32) for _ in range(5)]
    assert len({address(array) for array in arrays}) == 5
    assert len(memory._buffers) == 2
    memory.acquire((1,), np.float32)  # another size: progressive resolution
    assert len(memory._buffers) == 1
    memory.clear()
    assert not memory._buffers
