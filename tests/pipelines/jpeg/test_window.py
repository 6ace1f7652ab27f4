"""Windows cut from JPEGs decode to the pixels of the whole image, bit for bit."""

import numpy as np
import pytest
import simplejpeg
from support.jpegs import SUBSAMPLINGS, draw_pixels, encode, save

from pipelines.jpeg import add_restarts
from pipelines.jpeg.window import cut
from pipelines.views import ViewSpec, draw_views


def decode_window(jpeg: bytes, box: tuple[int, int, int, int]) -> tuple[np.ndarray, bool]:
    """The box's pixels (top, left, bottom, right), from a window where one can be cut; and whether it could."""
    top, left, bottom, right = box
    window, out = np.zeros(4, np.int64), np.empty(len(jpeg), np.uint8)
    size = cut(np.frombuffer(jpeg, np.uint8), *box, out, window)
    if not size:
        return simplejpeg.decode_jpeg(jpeg)[top:bottom, left:right], False
    pixels = simplejpeg.decode_jpeg(out[:size].tobytes())  # strictly: a warning is an error
    assert pixels.shape[:2] == tuple(window[2:])
    y, x = window[:2]
    return pixels[top - y : bottom - y, left - x : right - x], True


def boxes_of(height: int, width: int, rng: np.random.Generator) -> list[tuple[int, int, int, int]]:
    """A pixel at each corner and edge, the whole image, boxes that end at the borders of blocks, and random ones."""
    ys, xs = sorted({0, height // 2, height - 1}), sorted({0, width // 2, width - 1})
    boxes = [(y, x, y + 1, x + 1) for y in ys for x in xs] + [(0, 0, height, width)]
    for edge in (8, 16, 32):
        for shift in (-1, 0, 1):
            if 0 < edge + shift < min(height, width):
                boxes += [(edge + shift, edge + shift, height, width), (0, 0, edge + shift, edge + shift)]
    for _ in range(20):
        top, left = rng.integers(0, height), rng.integers(0, width)
        boxes.append((top, left, rng.integers(top + 1, height + 1), rng.integers(left + 1, width + 1)))
    return boxes


@pytest.mark.parametrize("subsampling", SUBSAMPLINGS)
@pytest.mark.parametrize("size", [(375, 500), (33, 70), (8, 8), (1, 1), (200, 17), (257, 331), (64, 499)])
def test_boxes(subsampling, size):
    rng = np.random.default_rng(0)
    jpeg = encode(draw_pixels(rng, *size), subsampling)
    whole = simplejpeg.decode_jpeg(jpeg)
    for restart in (1, 2, "auto"):
        with_markers = add_restarts(jpeg, restart)
        for box in boxes_of(*size, rng):
            top, left, bottom, right = box
            pixels, _ = decode_window(with_markers, box)
            assert np.array_equal(pixels, whole[top:bottom, left:right]), (restart, box)


def test_a_window_is_smaller_than_the_image():
    jpeg = add_restarts(encode(draw_pixels(np.random.default_rng(0), 320, 320), "420"), 1)
    window, out = np.zeros(4, np.int64), np.empty(len(jpeg), np.uint8)
    size = cut(np.frombuffer(jpeg, np.uint8), 100, 50, 130, 100, out, window)
    assert window.tolist() == [96, 48, 48, 64]  # the box and 2 pixels, rounded to MCUs of 16 × 16
    assert size < len(jpeg) / 10


@pytest.mark.parametrize("quality", [90, 97])
def test_views_of_photos(imagenet_photos, quality):
    """The boxes that training draws, two views of each photo, 4 epochs."""
    paths = sorted(imagenet_photos.rglob("*.JPEG"))[:: 5 if quality == 97 else 2]
    windows = 0
    for index, path in enumerate(paths):
        pixels = simplejpeg.decode_jpeg(path.read_bytes())[:500, :500]
        jpeg = add_restarts(
            simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality, colorsubsampling="420")
        )
        whole = simplejpeg.decode_jpeg(jpeg)
        height, width = whole.shape[:2]
        for epoch in range(4):
            box = draw_views(
                ViewSpec.simclr(), 0, epoch, np.array([index]), np.array([height]), np.array([width])
            ).box
            top, left = (int(box[:, 0, k].min()) for k in (0, 1))
            bottom, right = (int((box[:, 0, k] + box[:, 0, k + 2]).max()) for k in (0, 1))
            got, was_cut = decode_window(jpeg, (top, left, bottom, right))
            assert np.array_equal(got, whole[top:bottom, left:right]), (path, epoch)
            windows += was_cut
    assert windows > 0.5 * 4 * len(paths)


@pytest.mark.parametrize(
    "options",
    [{}, {"restart_marker_blocks": 3}, {"progressive": True, "restart_marker_blocks": 1}],
    ids=["no markers", "intervals that straddle rows", "progressive"],
)
def test_others_are_decoded_whole(options):
    jpeg = save(
        draw_pixels(np.random.default_rng(0), 100, 160), subsampling="4:2:0", **options
    )  # 10 MCUs a row
    assert not decode_window(jpeg, (20, 20, 40, 40))[1]


def test_markers_of_another_encoder_will_do():
    pixels = draw_pixels(np.random.default_rng(0), 100, 160)
    jpeg = save(pixels, subsampling="4:2:0", restart_marker_blocks=5)
    got, was_cut = decode_window(jpeg, (20, 20, 40, 40))
    assert was_cut
    assert np.array_equal(got, simplejpeg.decode_jpeg(jpeg)[20:40, 20:40])


def test_damage_before_the_window_is_left_to_the_decoder():
    """A marker that is missing means that the intervals can't be told apart: the whole image is decoded."""
    jpeg = bytearray(add_restarts(encode(draw_pixels(np.random.default_rng(0), 160, 160), "420"), 1))
    at = jpeg.index(b"\xff\xd3")
    jpeg[at : at + 2] = b"\x12\x34"
    window, out = np.zeros(4, np.int64), np.empty(len(jpeg), np.uint8)
    assert not cut(np.frombuffer(bytes(jpeg), np.uint8), 100, 100, 120, 120, out, window)


def test_hostile_files_stay_within_their_memory():
    """Flipped at random, the file is cut or not; nothing is written behind its size."""
    rng = np.random.default_rng(0)
    good = np.frombuffer(add_restarts(encode(draw_pixels(rng, 90, 110), "422"), 2), np.uint8)
    cuts = 0
    for _ in range(3000):
        jpeg = good.copy()
        places = rng.integers(0, len(jpeg) if rng.random() < 0.5 else 640, rng.integers(1, 4))
        jpeg[places] = rng.integers(0, 256, len(places))
        jpeg = jpeg[: rng.integers(len(jpeg) // 2, len(jpeg) + 1)]
        window, out = np.zeros(4, np.int64), np.full(len(good) + 64, 0xA5, np.uint8)
        size = cut(jpeg, 10, 10, 40, 40, out[: len(jpeg)], window)
        assert 0 <= size <= len(jpeg)
        assert (out[len(jpeg) :] == 0xA5).all()
        cuts += size > 0
    assert 500 < cuts < 3000
