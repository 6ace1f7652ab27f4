"""The GPU crop-resize against torchvision: in Triton's interpreter, and at real sizes where there is a GPU."""

import numpy as np
import pytest
import torch
from support.oracle import crop_oracle
from support.triton_support import interpreted, on_gpu, poisoned_empty

from pipelines.views import ViewParams, ViewSpec, draw_views

pytest.importorskip("triton")

MEAN = 0.02
"""Mean difference promised for a resize of our own, gray levels; measured 0.0003."""


def picture(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Smooth color and strong noise: rounding errors of either kind would show."""
    y, x = np.mgrid[0:height, 0:width]
    waves = 127 + 90 * np.sin(
        x[..., None] * rng.uniform(0.05, 0.4, 3) + y[..., None] * rng.uniform(0.05, 0.4, 3)
    )
    return (waves + rng.normal(0, 25, waves.shape)).clip(0, 255).astype(np.uint8)


def difference(
    pictures: list[np.ndarray], indices: np.ndarray, params: ViewParams, size: int, device: str
) -> tuple[int, float]:
    """Largest and mean difference from torchvision, gray levels; as a uniform set where it is one."""
    from pipelines.ops.crop.gpu import crop_resize

    tables = (torch.from_numpy(array).to(device) for array in (indices, params.box, params.flip))
    heights, widths = (np.array([image.shape[axis] for image in pictures]) for axis in (0, 1))
    with poisoned_empty():
        if len(set(heights)) == len(set(widths)) == 1:
            crops = crop_resize(torch.from_numpy(np.stack(pictures)).to(device), *tables, size)
        else:
            packed = torch.from_numpy(np.concatenate([image.ravel() for image in pictures])).to(device)
            ends = np.cumsum(3 * heights.astype(np.int64) * widths)
            offsets = torch.from_numpy(ends - 3 * heights * widths).to(device)
            width = torch.from_numpy(widths.astype(np.int32)).to(device)
            crops = crop_resize(packed, *tables, size, offsets=offsets, widths=width)
    assert crops.shape == (*params.flip.shape, size, size, 3)
    expected = np.stack(
        [
            [
                crop_oracle(pictures[i], params.box[v, b], params.flip[v, b], size)
                for b, i in enumerate(indices)
            ]
            for v in range(len(params.flip))
        ]
    )
    off = np.abs(crops.cpu().numpy().astype(int) - expected)
    return int(off.max()), float(off.mean())


def random_views(
    shapes: list[tuple[int, int]], size: int, views: int, images: int, device: str = "cpu"
) -> tuple[int, float]:
    rng = np.random.default_rng(size)
    pictures = [picture(rng, *shape) for shape in shapes]
    indices = rng.integers(0, len(pictures), images)
    heights, widths = (np.array([shapes[i][axis] for i in indices]) for axis in (0, 1))
    params = draw_views(ViewSpec(size=size, num_views=views), 3, 0, indices, heights, widths)
    return difference(pictures, indices, params, size, device)


@pytest.mark.parametrize(
    ("shapes", "size", "views", "images"),
    [
        ([(32, 32)] * 5, 32, 2, 12),  # CIFAR: boxes at most as large as the view
        ([(96, 96)] * 3, 32, 1, 12),  # mostly reductions, by up to 3
        ([(41, 50)] * 3, 37, 3, 3),  # a row of 37 ends in a run of 5 pixels
        ([(40, 50)] * 2, 96, 1, 2),  # enlargements over several strips
        ([(30, 61), (75, 33), (17, 17), (90, 64)], 24, 2, 12),  # images of their own sizes
    ],
)
def test_random_views(shapes: list[tuple[int, int]], size: int, views: int, images: int) -> None:
    largest, mean = interpreted(random_views, shapes, size, views, images)
    assert largest <= 1
    assert mean <= MEAN


def odd_boxes() -> tuple[int, float]:
    shapes = [(1, 1), (1, 70), (64, 1), (5, 7), (150, 130), (16, 16), (16, 16)]
    boxes = [
        (0, 0, 1, 1),
        (0, 69, 1, 1),  # the last pixel of a line
        (0, 0, 64, 1),
        (4, 0, 1, 7),  # the last row
        (0, 0, 150, 130),  # a reduction by 9
        (0, 0, 16, 16),  # the identity
        (5, 3, 11, 13),  # to the corner
    ]
    rng = np.random.default_rng(0)
    count = len(shapes)
    params = draw_views(ViewSpec(size=16), 0, 0, np.arange(count), np.full(count, 9), np.full(count, 9))
    params.box[:] = boxes
    params.flip[0], params.flip[1] = False, True
    return difference([picture(rng, *shape) for shape in shapes], np.arange(count), params, 16, "cpu")


def test_boxes_at_the_edges_of_an_image() -> None:
    largest, mean = interpreted(odd_boxes)
    assert largest <= 1
    assert mean <= MEAN


def steps_and_out(device: str = "cpu") -> list[bool]:
    """Return for two steps whether the buffer was used, and whether the step's own tables give the same crops."""
    from pipelines.ops.crop.gpu import crop_resize

    rng = np.random.default_rng(1)
    images = torch.from_numpy(np.stack([picture(rng, 20, 20) for _ in range(6)])).to(device)
    indices = np.array([[3, 0], [5, 5]])
    params = [draw_views(ViewSpec(size=16), 0, 0, row, np.full(2, 20), np.full(2, 20)) for row in indices]
    rows = torch.from_numpy(indices).to(device)
    box = torch.from_numpy(np.stack([one.box for one in params])).to(device)
    flip = torch.from_numpy(np.stack([one.flip for one in params])).to(device)
    step = torch.zeros(1, dtype=torch.int64, device=device)
    out = torch.zeros(2, 2, 16, 16, 3, dtype=torch.uint8, device=device)
    equal = []
    for i in range(2):
        got = crop_resize(images, rows, box, flip, 16, step=step, out=out)
        equal += [got is out, torch.equal(got, crop_resize(images, rows[i], box[i], flip[i], 16))]
        step += 1
    return equal


def test_a_counter_of_steps_and_a_buffer_of_ones_own() -> None:
    assert interpreted(steps_and_out) == [True] * 4


def test_bad_arguments_are_named() -> None:
    from pipelines.ops.crop.gpu import crop_resize

    images = torch.zeros(4, 8, 8, 3, dtype=torch.uint8)
    indices, flip = torch.zeros(2, dtype=torch.int64), torch.zeros(1, 2, dtype=torch.bool)
    box = torch.zeros(1, 2, 4, dtype=torch.int32)
    with pytest.raises(ValueError, match=r"images must be contiguous torch.uint8 \[4, 8, 8, 3\] on cpu"):
        crop_resize(images.float(), indices, box, flip, 16)
    with pytest.raises(ValueError, match=r"indices must be .* torch.int64 \[2\] on cpu, got torch.int32"):
        crop_resize(images, indices.int(), box, flip, 16)
    with pytest.raises(ValueError, match=r"box must be .* torch.int32 \[1, 2, 4\] on cpu, got torch.int64"):
        crop_resize(images, indices, box.long(), flip, 16)
    with pytest.raises(ValueError, match=r"flip must be .* \[1, 2\]"):
        crop_resize(images, indices, box, flip[:, :1], 16)
    with pytest.raises(ValueError, match=r"out must be .* \[1, 2, 16, 16, 3\]"):
        crop_resize(images, indices, box, flip, 16, out=images)
    with pytest.raises(ValueError, match=r"offsets must be .* got None"):
        crop_resize(images.view(-1), indices, box, flip, 16)
    with pytest.raises(ValueError, match=r"box must be \[V, B, 4\], or \[steps, V, B, 4\] with a step"):
        crop_resize(images, indices, box, flip, 16, step=torch.zeros(1, dtype=torch.int64))


@on_gpu
@pytest.mark.parametrize(
    ("shapes", "size"),
    [
        ([(32, 32)] * 50, 32),
        ([(96, 96)] * 50, 96),
        ([(500, 375), (333, 500), (1200, 900), (64, 300)], 224),
        ([(256, 256)] * 20, 225),
    ],
)
def test_real_sizes_on_a_gpu(shapes: list[tuple[int, int]], size: int) -> None:
    largest, mean = random_views(shapes, size, 2, 100, "cuda")
    assert largest <= 1
    assert mean <= MEAN


@on_gpu
def test_steps_on_a_gpu() -> None:
    assert steps_and_out("cuda") == [True] * 4
