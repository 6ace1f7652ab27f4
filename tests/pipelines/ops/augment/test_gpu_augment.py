"""The GPU augmentation against torchvision: in Triton's interpreter, and at real sizes where there is a GPU.

All errors are in gray levels, 1/255 before the normalisation.  float32 differs from torchvision by rounding
only.  Half precision may be off by one level: half a step of bfloat16 at the ends of the range is a third of
a level, and the interpreter truncates where a GPU rounds.
"""

import subprocess
import sys
from dataclasses import replace
from itertools import permutations
from unittest import mock

import numpy as np
import pytest
import torch
from support.oracle import augment_oracle
from support.triton_support import interpreted, on_gpu, poisoned_empty

from pipelines.views import ViewParams, ViewSpec, draw_views

pytest.importorskip("triton")

HALF = 1.0
"""The promise for half precision."""
EXACT = 0.002
"""float32, 25 times closer than promised; measured 0.0005."""


def draw(spec: ViewSpec, images: int) -> ViewParams:
    return draw_views(spec, 5, 0, np.arange(images), np.full(images, 60), np.full(images, 60))


def noise(spec: ViewSpec, images: int, values: tuple[int, ...] = tuple(range(256))) -> torch.Tensor:
    """Crops of random bytes: every pixel another hue, and neighbours as different as they can be."""
    rng = np.random.default_rng(spec.size)
    shape = (spec.num_views, images, spec.size, spec.size, 3)
    return torch.from_numpy(rng.choice(np.array(values, np.uint8), shape))


def largest_error(picture: torch.Tensor, expected: torch.Tensor) -> float:
    """NaN where `picture` is; values that the oracle leaves undecided don't count."""
    return (picture - expected)[~expected.isnan()].abs().max().item()


def levels_off(
    crops: torch.Tensor, params: ViewParams, spec: ViewSpec, dtype: torch.dtype, device: str = "cpu"
) -> np.ndarray:
    """Largest difference from torchvision in each view [V, B]; NaN where a value was not written."""
    from pipelines.ops.augment.gpu import augment

    with poisoned_empty():
        views = augment(crops.to(device), params, spec, dtype)
    assert views.dtype == dtype
    assert views.shape == (*crops.shape[:2], 3, spec.size, spec.size)
    assert all(view.is_contiguous(memory_format=torch.channels_last) for view in views)
    margin = 1e-4 if dtype == torch.float32 else 0.01
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (spec.mean, spec.std))
    pictures = views.cpu().float() * std + mean
    return np.array(
        [
            [
                255 * largest_error(picture, augment_oracle(crop.numpy(), params[v, b], spec, margin))
                for b, (picture, crop) in enumerate(zip(pictures[v], crops[v], strict=True))
            ]
            for v in range(len(crops))
        ]
    )


def each_order() -> np.ndarray:
    spec = ViewSpec(size=32, num_views=1, jitter_p=1, gray_p=0, blur_p=0)
    params = replace(draw(spec, 24), jitter_order=np.array([list(permutations(range(4)))], np.uint8))
    return levels_off(noise(spec, 24), params, spec, torch.float32)


def test_every_order_of_the_jitter() -> None:
    # the contrast's gray mean is that of the picture as the operations before it left it
    assert interpreted(each_order).max() < EXACT


def each_operation() -> np.ndarray:
    spec = ViewSpec(size=48, num_views=1)
    params = draw(spec, 7)
    off = np.zeros((1, 7), bool)
    neutral = np.tile([1.0, 1.0, 1.0, 0.0], (1, 7, 1))
    params = replace(
        params, jitter=off.copy(), grayscale=off.copy(), blur_sigma=np.zeros((1, 7)), jitter_factors=neutral
    )
    for operation, factor in enumerate((1.7, 0.3, 1.6, -0.17)):
        params.jitter[0, operation] = True
        params.jitter_factors[0, operation, operation] = factor
    params.grayscale[0, 4] = True
    params.blur_sigma[0, 5] = 1.3
    return levels_off(noise(spec, 7), params, spec, torch.float32)


def test_each_operation_alone() -> None:
    errors = interpreted(each_operation)[0]
    names = ("brightness", "contrast", "saturation", "hue", "gray", "blur", "nothing")
    assert all(error < EXACT for error in errors), dict(zip(names, errors, strict=True))


def palette() -> np.ndarray:
    """Corners and edges of the color cube, where channels tie, and the grays, which have no hue."""
    spec = ViewSpec(size=32, num_views=1, jitter_strength=2.5, jitter_p=1, gray_p=0, blur_p=0)
    return levels_off(noise(spec, 8, (0, 1, 128, 254, 255)), draw(spec, 8), spec, torch.float32)


def test_ties_grays_and_shifts_of_half_a_turn() -> None:
    assert interpreted(palette).max() < EXACT


def one_size(size: int, views: int, images: int, dtype: torch.dtype, device: str = "cpu") -> np.ndarray:
    spec = ViewSpec(size=size, num_views=views, blur_p=0.6)
    return levels_off(noise(spec, images), draw(spec, images), spec, dtype, device)


@pytest.mark.parametrize(
    ("size", "views", "images"),
    [
        (32, 2, 4),  # one strip; a blur of 3 taps, which the recipes switch off at this size
        (36, 1, 6),  # whole runs of pixels in the image but not in its rows
        (37, 3, 2),  # neither: 1369 pixels
        (48, 2, 3),  # a tile of the blur and a half, rows from both borders
        (96, 1, 2),  # several strips and tiles
        (8, 1, 4),  # fewer pixels than threads, and no blur: 8 // 10 taps
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_sizes_views_and_types(size: int, views: int, images: int, dtype: torch.dtype) -> None:
    errors = interpreted(one_size, size, views, images, dtype)
    assert errors.shape == (views, images)
    assert errors.max() < {torch.float32: EXACT, torch.float16: 0.4, torch.bfloat16: HALF}[dtype]


def solarized(size: int, dtype: torch.dtype, device: str = "cpu") -> np.ndarray:
    """Views with a blur and without one, each at a threshold of its own; the last one has none."""
    spec = ViewSpec(size=size, num_views=1, blur_p=0.5)
    params = draw(spec, 6)
    params.solarize[0] = 0.0, 0.25, 0.5, 0.75, 1.0, np.inf
    return levels_off(noise(spec, 6), params, spec, dtype, device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [37, 48])
def test_solarize(size: int, dtype: torch.dtype) -> None:
    errors = interpreted(solarized, size, dtype)
    assert errors.max() < {torch.float32: EXACT, torch.bfloat16: HALF}[dtype]


def negatives_of_black(dtype: torch.dtype) -> float:
    """Darkest value of black pictures, half of them blurred, that a threshold of 0 inverts."""
    from pipelines.ops.augment.gpu import augment

    spec = ViewSpec(size=40, num_views=1, jitter_p=0, blur_p=0)
    params = draw(spec, 2)
    params.solarize[:], params.blur_sigma[0, 0] = 0.0, 1.0
    views = augment(torch.zeros(1, 2, 40, 40, 3, dtype=torch.uint8), params, spec, dtype)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (spec.mean, spec.std))
    return (views.float() * std + mean).min().item()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_threshold_zero_is_the_negative(dtype: torch.dtype) -> None:
    assert interpreted(negatives_of_black, dtype) > 1 - HALF / 255


def largest_blur() -> np.ndarray:
    spec = ViewSpec(size=339, num_views=1, blur_p=1, blur_sigma=(9.0, 9.0))
    assert spec.blur_kernel == 33
    return levels_off(noise(spec, 1), draw(spec, 1), spec, torch.float16)


def test_as_many_taps_as_a_halo_holds() -> None:
    assert interpreted(largest_blur).max() < 0.4


def small_tiles() -> np.ndarray:
    with mock.patch("pipelines.ops.augment.gpu._capability", return_value=(8, 0)):
        return one_size(48, 1, 6, torch.float16)


def test_the_blur_in_the_tiles_of_older_gpus() -> None:
    assert interpreted(small_tiles).max() < 0.4


def tables_of_steps(device: str = "cpu") -> list[bool]:
    """Return for two steps whether a counter's table, and the step's own, give the same views as the numbers."""
    from pipelines.ops.augment.gpu import augment, params_table

    spec = ViewSpec(size=32)
    batches = [draw(spec, 6)[:, 3 * i : 3 * i + 3] for i in range(2)]
    table = torch.stack([params_table(params, spec) for params in batches]).to(device)
    crops = noise(spec, 3).to(device)
    step = torch.zeros(1, dtype=torch.int64, device=device)
    equal = []
    for params in batches:
        with poisoned_empty():
            expected = augment(crops, params, spec, torch.float16)
            got = augment(crops, table, spec, torch.float16, step=step)
            alone = augment(crops, table[step.item()], spec, torch.float16)
        equal += [torch.equal(got, expected), torch.equal(alone, expected)]
        step += 1
    return equal


def test_a_table_on_the_device_and_a_counter_of_steps() -> None:
    assert interpreted(tables_of_steps) == [True] * 4


def test_the_table_of_a_small_batch() -> None:
    from pipelines.ops.augment.gpu import params_table

    params = ViewParams(
        box=np.zeros((1, 3, 4), np.int32),
        flip=np.zeros((1, 3), bool),
        jitter=np.array([[True, False, True]]),
        jitter_order=np.array([[[3, 0, 1, 2], [0, 1, 2, 3], [2, 1, 0, 3]]], np.uint8),
        jitter_factors=np.array([[[0.5, 1.5, 0.25, 0.125], [1, 1, 1, 0], [2, 3, 4, -0.25]]]),
        grayscale=np.array([[False, True, False]]),
        blur_sigma=np.array([[0.0, 0.5, 2.0]]),
        solarize=np.array([[0.5, np.inf, 0.25]]),
    )
    expected = [
        [3, 0, 1, 2, 0.75, 0.5, 1.5, 0.25, 0, 0.0, -1, 1, 0.5],
        [-1, -1, -1, -1, 1, 1, 1, 0, 1, 0.5, 0, 2, np.inf],
        [2, 1, 0, 3, 4, 3, 2, -1.5, 0, 2.0, 1, -1, 0.25],
    ]
    assert params_table(params, ViewSpec(size=224)).tolist() == [expected]
    without_blur = params_table(params, ViewSpec(size=16))[0, :, 10:12]  # a kernel of one tap
    assert (without_blur == -1).all()


def test_bad_arguments_are_named() -> None:
    from pipelines.ops.augment.gpu import augment, params_table

    spec = ViewSpec(size=32)
    crops, params = noise(spec, 2), draw(spec, 2)
    with pytest.raises(ValueError, match="crops must be contiguous uint8"):
        augment(crops.float(), params, spec)
    with pytest.raises(ValueError, match=r"\[V, B, 48, 48, 3\], got torch.uint8 \[2, 2, 32, 32, 3\]"):
        augment(crops, params, ViewSpec(size=48))
    with pytest.raises(ValueError, match=r"dtype must be .* got torch.float64"):
        augment(crops, params, spec, torch.float64)
    with pytest.raises(ValueError, match=r"table must be float32 \[2, 2, 13\]"):
        augment(crops, params[:, :1], spec)
    with pytest.raises(ValueError, match=r"table must be float32 \[1, 2, 2, 13\] .* got .* \[1, 2, 13\]"):
        augment(crops, params_table(params, spec)[:1], spec, step=torch.zeros(1, dtype=torch.int64))
    large = ViewSpec(size=340, num_views=1, blur_p=1)
    with pytest.raises(ValueError, match="340 pixels is too large to blur"):
        augment(noise(large, 1), draw(large, 1), large)


@pytest.mark.parametrize("module", ["pipelines.ops.augment.gpu", "pipelines.ops.crop.gpu"])
def test_without_triton_the_reason_is_given(module: str) -> None:
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "from pipelines.errors import EngineUnavailable\n"
        f"try: import {module}\n"
        "except EngineUnavailable as error: print(error)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    assert "need Triton" in result.stdout
    assert "use device cpu" in result.stdout


@on_gpu
@pytest.mark.parametrize(
    ("size", "dtype"),  # compiling takes most of the time: a type more only where the code is another
    [
        *((size, torch.bfloat16) for size in (32, 37, 96, 160, 224, 256)),
        *((size, dtype) for size in (37, 96, 224) for dtype in (torch.float32, torch.float16)),
    ],
)
def test_real_sizes_on_a_gpu(size: int, dtype: torch.dtype) -> None:
    errors = one_size(size, 2, 24, dtype, "cuda")
    assert errors.max() < {torch.float32: 0.05, torch.float16: 0.4, torch.bfloat16: HALF}[dtype]


@on_gpu
def test_a_captured_graph_reads_the_rows_of_its_step() -> None:
    from pipelines.ops.augment.gpu import augment, params_table

    assert tables_of_steps("cuda") == [True] * 4  # compiles, too: nothing may be compiled during the capture
    spec = ViewSpec(size=32)
    batches = [draw(spec, 24)[:, 8 * i : 8 * i + 8] for i in range(3)]
    table = torch.stack([params_table(params, spec) for params in batches]).cuda()
    crops = noise(spec, 8).cuda()
    step = torch.zeros(1, dtype=torch.int64, device="cuda")
    expected = [augment(crops, params, spec, torch.float16) for params in batches]
    augment(crops, table, spec, torch.float16, step=step)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        views = augment(crops, table, spec, torch.float16, step=step)
        step += 1
    step.zero_()
    for wanted in expected:
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(views, wanted)
