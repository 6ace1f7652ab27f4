"""The CPU crop kernel against torchvision's float path: within 1 gray level, 0.02 on average."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np
import pytest
import simplejpeg
from support.oracle import crop_oracle

from pipelines import BetonReader, ViewSpec, draw_views
from pipelines.ops.crop.cpu import crop_resize, crop_rows, scratch_bytes


def crop(image, boxes, flips, size, poison=0):
    """crop_rows on one image with memory of its own, filled with `poison`: uint8 [V, H, W, 3]."""
    height, width = (size, size) if isinstance(size, int) else size
    out = np.full((len(boxes), 1, height, width, 3), poison, np.uint8)
    scratch = np.full(scratch_bytes(*image.shape[:2], height, width), poison, np.uint8)
    crop_into(out, 0, image, boxes, flips, scratch)
    return out[:, 0]


def crop_into(out, first, image, boxes, flips, scratch):
    boxes, flips = np.asarray(boxes, np.int32)[:, None], np.asarray(flips, bool)[:, None]
    zero, windows = np.zeros(1, np.int64), np.array([[0, 0, *image.shape[:2]]], np.int32)
    crop_rows(0, 1, windows, zero, boxes, flips, image.reshape(-1), zero, out, first, scratch)


def errors(image, boxes, flips, size) -> np.ndarray:
    """Gray levels between us and the oracle, flat; none may exceed 1."""
    ours = crop(image, boxes, flips, size)
    pairs = zip(ours, boxes, flips, strict=True)
    distance = [
        np.abs(view - crop_oracle(image, box, flip, size).astype(np.int16)) for view, box, flip in pairs
    ]
    assert np.max(distance) <= 1, (image.shape, boxes, flips, size)
    return np.concatenate([d.ravel() for d in distance])


def noise(rng, height, width):
    return rng.integers(0, 256, (height, width, 3), np.uint8)


def random_box(rng, height, width):
    h, w = rng.integers(1, height + 1), rng.integers(1, width + 1)
    return [rng.integers(0, height - h + 1), rng.integers(0, width - w + 1), h, w]


def test_random_views_of_noise():
    """400 views, 32 to 256 pixels; noise is the worst case: no two neighbours agree."""
    rng = np.random.default_rng(0)
    distances = []
    for _ in range(200):
        height, width = rng.integers(20, 500, 2)
        boxes = [random_box(rng, height, width) for _ in range(2)]
        distances.append(errors(noise(rng, height, width), boxes, [False, True], int(rng.integers(32, 257))))
    assert np.concatenate(distances).mean() <= 0.02


@pytest.mark.parametrize("size", [32, 96, 224])
def test_simclr_views_of_photos(photo_beton, size):
    """Views as they are drawn in training, 2 × 110."""
    reader = BetonReader(photo_beton)
    indices = np.arange(0, len(reader), max(1, len(reader) // 110))
    views = draw_views(ViewSpec.simclr(size), 3, 0, indices, reader.heights[indices], reader.widths[indices])
    distances = [errors(reader[i][0], views.box[:, b], views.flip[:, b], size) for b, i in enumerate(indices)]
    assert len(distances) * 2 >= 200
    assert np.concatenate(distances).mean() <= 0.02


def test_full_size_photos(imagenet_photos):
    """The photos as they are: gray ones, and ones up to 20 times larger than a small view."""
    paths = sorted(imagenet_photos.glob("*/*.JPEG"))[::10]
    rng = np.random.default_rng(1)
    distances = []
    for path in paths:
        image = simplejpeg.decode_jpeg(path.read_bytes())
        boxes = [[0, 0, *image.shape[:2]], random_box(rng, *image.shape[:2])]
        distances.append(errors(image, boxes, [False, True], 33))
    assert np.concatenate(distances).mean() <= 0.02


@pytest.mark.parametrize(
    ("image", "size"),
    [
        ((40, 60), (16, 6)),  # the smallest view that whole registers can make
        ((40, 60), (15, 6)),  # too low for a block of rows
        ((40, 60), (16, 5)),  # too narrow for a register of bytes
        ((40, 60), 1),
        ((40, 60), (17, 7)),  # the last block and the last register overlap those before
        ((40, 60), (33, 250)),  # enlarged and reduced at once
        ((30, 21), 32),  # rows of 63 bytes, one less than a chunk
        ((30, 22), 32),  # 66 bytes: a chunk fits, at three places
        ((1, 22), 32),
        ((1, 1), 32),
        ((1, 10000), 32),  # 313 pixels per output pixel: the plain path
        ((10000, 1), 32),
        ((40, 1024), 32),  # 64 taps, the most that fixed point takes
        ((40, 1040), 32),  # and 65
        ((700, 500), 16),
    ],
)
def test_odd_sizes(image, size):
    rng = np.random.default_rng(2)
    height, width = image
    boxes = [[0, 0, height, width], [height - 1, width - 1, 1, 1], [0, 0, 1, width], [0, 0, height, 1]]
    boxes += [[height // 2, width // 2, (height + 1) // 2, (width + 1) // 2]]  # touches the image's last byte
    boxes += [random_box(rng, height, width) for _ in range(5)]
    assert errors(noise(rng, height, width), boxes, rng.random(len(boxes)) < 0.5, size).max() <= 1


def test_whole_image_at_its_own_size_is_the_image():
    image = noise(np.random.default_rng(3), 64, 80)
    np.testing.assert_array_equal(crop(image, [[0, 0, 64, 80]], [False], (64, 80))[0], image)


def test_one_color_stays_that_color():
    """Black, white and all grays, enlarged and reduced: cutting the products must not darken the picture."""
    for gray in range(256):
        image = np.full((90, 70, 3), gray, np.uint8)
        views = crop(image, [[0, 0, 90, 70], [5, 60, 20, 10], [1, 2, 31, 32]], [False] * 3, 32)
        assert (views == gray).all()


def test_flip_mirrors_bit_for_bit():
    rng = np.random.default_rng(4)
    image = noise(rng, 120, 150)
    for size in (32, 47, 7):
        box = random_box(rng, 120, 150)
        plain, mirrored = crop(image, [box, box], [False, True], size)
        np.testing.assert_array_equal(plain[:, ::-1], mirrored)


def test_result_does_not_depend_on_what_is_in_memory():
    rng = np.random.default_rng(5)
    for height, width, size in [(200, 300, 224), (1, 300, 224), (300, 2, 64), (30, 5000, 40), (9, 9, 9)]:
        image, boxes = noise(rng, height, width), [random_box(rng, height, width) for _ in range(4)]
        one, other = (crop(image, boxes, [False, True] * 2, size, poison) for poison in (0, 255))
        np.testing.assert_array_equal(one, other)


def test_writes_only_the_view_and_the_scratch():
    rng = np.random.default_rng(6)
    for height, width, size in [(200, 300, 65), (3, 5000, 33), (1, 1, 16), (10, 10, 3), (64, 7, 224)]:
        num_bytes = scratch_bytes(height, width, size, size)
        for shift in (0, 1, 24):  # the tables are aligned inside, wherever the scratch begins
            memory = np.full(num_bytes + 200, 77, np.uint8)
            batch = np.full((3, 3, size, size, 3), 77, np.uint8)
            boxes = np.array([[0, 0, height, width], random_box(rng, height, width)], np.int32)
            scratch = memory[100 + shift : 100 + shift + num_bytes]
            crop_into(batch[:2], 1, noise(rng, height, width), boxes, [True, False], scratch)
            assert (memory[: 100 + shift] == 77).all()
            assert (memory[100 + shift + num_bytes :] == 77).all()
            assert (batch[:, [0, 2]] == 77).all()
            assert (batch[2] == 77).all()


GUARDED = """
import ctypes, mmap, sys
import numpy as np
from pipelines.ops.crop.cpu import crop_rows, scratch_bytes

# an image that fills memory from one unreadable page to the next, as far as its shape allows
page, rng, zero = mmap.PAGESIZE, np.random.default_rng(0), np.zeros(1, np.int64)
protect = ctypes.CDLL(None, use_errno=True).mprotect
protect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
for height, width in [(64, 64), (30, 41), (1, 22), (22, 1), (9, 21), (9, 22), (5, 300), (300, 5), (1, 3), (7, 1000)]:
    used = 3 * height * width
    pages = -(-used // page)
    memory = np.frombuffer(mmap.mmap(-1, (pages + 2) * page), np.uint8)
    for guard in (0, (pages + 1) * page):
        assert protect(memory.ctypes.data + guard, page, 0) == 0
    for begin in (page, (pages + 1) * page - used):
        image = memory[begin : begin + used]
        size = np.array([height, width])
        low = (rng.random((40, 2)) * size).astype(np.int32)
        boxes = np.concatenate([low, size - low], 1).astype(np.int32)  # all reach the last pixel
        boxes[20:, :2] = 0  # and these begin at the first
        boxes[20:, 2:] = 1 + (rng.random((20, 2)) * size).astype(np.int32)
        for side in (16, 32, 50):
            out = np.empty((40, 1, side, side, 3), np.uint8)
            scratch = np.empty(scratch_bytes(height, width, side, side), np.uint8)
            flips = np.arange(40) % 2 == 0
            windows = np.array([[0, 0, *size]], np.int32)
            crop_rows(0, 1, windows, zero, boxes[:, None], flips[:, None], image, zero, out, 0, scratch)
print("in bounds")
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs mprotect")
def test_reads_only_the_image():
    """Unreadable pages around the image: a byte too far kills the process."""
    run = subprocess.run([sys.executable, "-c", GUARDED], capture_output=True, text=True, timeout=120)
    assert run.stdout == "in bounds\n", run.stderr


def test_threads_agree_bit_for_bit():
    rng = np.random.default_rng(7)
    images = [noise(rng, *rng.integers(50, 400, 2)) for _ in range(20)]
    boxes = [[random_box(rng, *image.shape[:2]) for _ in range(2)] for image in images]

    def all_crops(_):
        return np.stack([crop(i, b, [False, True], 96) for i, b in zip(images, boxes, strict=True)])

    alone = all_crops(None)
    with ThreadPoolExecutor(4) as pool:
        for together in pool.map(all_crops, range(8)):
            np.testing.assert_array_equal(alone, together)


def test_rows_of_a_batch():
    """Rows 2 to 4 of a batch of six, their images anywhere in memory; from row 1 of `out` on."""
    rng = np.random.default_rng(8)
    images = [noise(rng, *shape) for shape in ((50, 60), (3, 200), (80, 40), (31, 33))]
    heights, widths = np.array([image.shape[:2] for image in images], np.uint16).T.copy()
    indices = np.array([3, 3, 1, 0, 2, 3])
    boxes = np.array([[random_box(rng, heights[i], widths[i]) for i in indices] for _ in range(2)], np.int32)
    flips = rng.random((2, 6)) < 0.5
    starts, pixels = np.array([9000, 20000, 0]), np.full(30000, 99, np.uint8)
    for start, index in zip(starts, indices[2:5], strict=True):
        pixels[start : start + images[index].size] = images[index].ravel()
    out = np.zeros((2, 5, 32, 32, 3), np.uint8)
    scratch = np.empty(scratch_bytes(80, 200, 32, 32), np.uint8)
    windows = np.stack([0 * heights, 0 * heights, heights, widths], 1).astype(np.int32)
    crop_rows(2, 5, windows, indices[2:5], boxes, flips, pixels, starts, out, 1, scratch)
    for place, row in enumerate(range(2, 5), 1):
        expected = crop(images[indices[row]], boxes[:, row], flips[:, row], 32)
        np.testing.assert_array_equal(out[:, place], expected)
    assert not out[:, [0, 4]].any()


@numba.njit(nogil=True)
def crop_first(image, boxes, out, scratch):
    top, left, height, width = boxes[0]
    crop_resize(image, top, left, height, width, False, out, scratch)


def test_callable_from_compiled_code():
    image = noise(np.random.default_rng(9), 50, 60)
    boxes = np.array([[3, 4, 40, 50]], np.int32)
    out = np.empty((32, 32, 3), np.uint8)
    crop_first(image, boxes, out, np.empty(scratch_bytes(50, 60, 32, 32), np.uint8))
    np.testing.assert_array_equal(out, crop(image, boxes, [False], 32)[0])


@pytest.mark.parametrize(
    "box",
    [[-1, 0, 5, 5], [0, -1, 5, 5], [0, 0, 0, 5], [0, 0, 5, 0], [0, 0, 11, 5], [6, 0, 5, 5], [0, 8, 5, 5]],
)
def test_refuses_boxes_outside_the_image(box):
    with pytest.raises(ValueError, match="box"):
        crop(np.zeros((10, 12, 3), np.uint8), [box], [False], 32)


def test_refuses_a_box_whose_end_overflows():
    huge = 2**31 - 1
    with pytest.raises(ValueError, match="box"):
        crop(np.zeros((10, 12, 3), np.uint8), [[huge, 0, huge, 5]], [False], 32)


def test_windows():
    """The crop of a box is the same, to the bit, from any window that holds the box."""
    rng = np.random.default_rng(9)
    image = noise(rng, 120, 150)
    box = np.array([[[40, 60, 33, 47]]], np.int32)
    expected = crop(image, box[:, 0], [True], 32)
    for top, left, height, width in ((0, 0, 120, 150), (40, 60, 33, 47), (38, 0, 40, 150), (0, 58, 75, 92)):
        window = np.ascontiguousarray(image[top : top + height, left : left + width])
        out, scratch = (
            np.empty((1, 1, 32, 32, 3), np.uint8),
            np.empty(scratch_bytes(120, 150, 32, 32), np.uint8),
        )
        windows, zero = np.array([[top, left, height, width]], np.int32), np.zeros(1, np.int64)
        crop_rows(0, 1, windows, zero, box, np.array([[True]]), window.reshape(-1), zero, out, 0, scratch)
        np.testing.assert_array_equal(out[:, 0], expected)


def test_refuses_unfit_memory():
    image, box, flip = np.zeros((10, 12, 3), np.uint8), [[0, 0, 5, 5]], [False]
    scratch = np.empty(scratch_bytes(10, 12, 32, 32), np.uint8)
    with pytest.raises(ValueError, match="scratch"):
        crop_into(np.empty((1, 1, 32, 32, 3), np.uint8), 0, image, box, flip, scratch[:-1])
    with pytest.raises(ValueError, match="contiguous"):
        crop_into(np.empty((1, 1, 32, 64, 3), np.uint8)[:, :, :, ::2], 0, image, box, flip, scratch)
    with pytest.raises(ValueError, match="as many boxes"):
        crop_into(np.empty((2, 1, 32, 32, 3), np.uint8), 0, image, box, flip, scratch)
    zero, out = np.zeros(1, np.int64), np.empty((1, 1, 32, 32, 3), np.uint8)
    windows = np.array([[0, 0, 1, 1]], np.int32)
    boxes, flips = np.array([[[0, 0, 1, 1]]], np.int32), np.array([[False]])
    for start in (-1, 1):
        with pytest.raises(ValueError, match="beyond the memory"):
            crop_rows(0, 1, windows, zero, boxes, flips, np.zeros(3, np.uint8), zero + start, out, 0, scratch)
