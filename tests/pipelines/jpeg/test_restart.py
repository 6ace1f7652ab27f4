"""Restart markers added to JPEGs: the same coefficients, whatever the file is like."""

import io

import numpy as np
import pytest
import simplejpeg
from PIL import Image
from support.jpegs import SUBSAMPLINGS, draw_pixels, encode, save

from pipelines.jpeg import TranscodeError, add_restarts
from pipelines.jpeg.interval import restart_interval

SIZES = ((375, 500), (33, 70), (8, 8), (1, 1), (200, 17), (257, 331))


def markers(jpeg: bytes) -> list[int]:
    """Numbers of the restart markers, in their order; 0xFF in the data is followed by 0."""
    scan = jpeg.index(b"\xff\xda")
    return [
        b & 7 for a, b in zip(jpeg[scan:], jpeg[scan + 1 :], strict=False) if a == 0xFF and 0xD0 <= b <= 0xD7
    ]


@pytest.mark.parametrize("subsampling", SUBSAMPLINGS)
@pytest.mark.parametrize("size", SIZES)
def test_pixels_are_the_same(subsampling, size):
    jpeg = encode(draw_pixels(np.random.default_rng(0), *size), subsampling)
    for restart in (1, 2, 4, "auto", "none"):
        with_markers = add_restarts(jpeg, restart)
        assert np.array_equal(simplejpeg.decode_jpeg(with_markers), simplejpeg.decode_jpeg(jpeg))
        # and so are the coefficients: without markers again, the file is what it was
        assert add_restarts(with_markers, "none") == add_restarts(jpeg, "none") == jpeg


def test_intervals_are_as_long_as_asked_for():
    jpeg = encode(draw_pixels(np.random.default_rng(0), 100, 500), "420")  # 7 rows of 32 MCUs
    for restart, per_row in ((1, 32), (2, 16), (3, 16), ("auto", 8)):
        assert markers(add_restarts(jpeg, restart)) == [n % 8 for n in range(7 * per_row - 1)]


@pytest.mark.parametrize(("mcus", "interval"), [(32, 4), (31, 1), (30, 3), (1, 1), (3, 3)])
def test_auto_is_the_largest_divisor_up_to_64_pixels(mcus, interval):
    assert restart_interval("auto", mcus, 16) == interval


@pytest.mark.parametrize(
    "options",
    [
        {"optimize": True},
        {"restart_marker_blocks": 5},
        {"restart_marker_rows": 1, "optimize": True},
        {"quality": 30, "subsampling": "4:4:4", "optimize": True},
        {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0", "icc_profile": bytes(1000)},
    ],
    ids=lambda options: ",".join(options),
)
def test_files_of_other_encoders(options):
    jpeg = save(draw_pixels(np.random.default_rng(1), 120, 180), **options)
    again = add_restarts(jpeg, 2)
    assert np.array_equal(simplejpeg.decode_jpeg(again), simplejpeg.decode_jpeg(jpeg))
    before, after = Image.open(io.BytesIO(jpeg)), Image.open(io.BytesIO(again))
    assert after.info.get("exif") == before.info.get("exif")
    assert after.info.get("icc_profile") == before.info.get("icc_profile")


def test_a_missing_code_brings_another_table():
    """An image of one gray has a single DC difference; its optimised table knows no other."""
    pixels = np.full((64, 64, 3), 200, np.uint8)
    pixels[:, 32:] = 90
    jpeg = save(pixels, optimize=True, subsampling="4:4:4")
    again = add_restarts(jpeg, 1)
    assert again.count(b"\xff\xc4") > jpeg.count(b"\xff\xc4")
    assert np.array_equal(simplejpeg.decode_jpeg(again), simplejpeg.decode_jpeg(jpeg))


def test_photos(imagenet_photos):
    """Originals as they come: of all kinds, at least 95 % get their markers, and none another pixel."""
    paths = sorted(imagenet_photos.rglob("*.JPEG"))
    done = 0
    for path in paths:
        jpeg = path.read_bytes()
        try:
            again = add_restarts(jpeg)
        except TranscodeError:
            continue
        done += 1
        assert np.array_equal(simplejpeg.decode_jpeg(again), simplejpeg.decode_jpeg(jpeg)), path
    assert done >= 0.95 * len(paths)


@pytest.mark.parametrize(
    ("jpeg", "reason"),
    [
        (b"", "baseline"),
        (b"\xff\xd8\xff\xd9", "baseline"),
        (save(np.zeros((40, 40, 3), np.uint8), progressive=True), "baseline"),
        (encode(draw_pixels(np.random.default_rng(0), 90, 90), "420")[:-800], "truncated"),
        (save(draw_pixels(np.random.default_rng(0), 90, 90), restart_marker_blocks=2)[:-800], "markers"),
    ],
    ids=["empty", "no frame", "progressive", "truncated", "truncated with markers"],
)
def test_unsupported_jpegs_are_refused_with_a_reason(jpeg, reason):
    with pytest.raises(TranscodeError, match=reason):
        add_restarts(jpeg)


def test_corrupt_files_end_in_an_error_or_in_an_image():
    """Header and data are flipped at random: no crash, and no other kind of error."""
    rng = np.random.default_rng(0)
    whole = np.frombuffer(save(draw_pixels(rng, 70, 90), restart_marker_blocks=3), np.uint8)
    refused = 0
    for _ in range(1000):
        jpeg = whole.copy()
        places = rng.integers(0, len(jpeg) if rng.random() < 0.5 else 640, rng.integers(1, 4))
        jpeg[places] = rng.integers(0, 256, len(places))
        try:
            add_restarts(jpeg[: rng.integers(len(jpeg) // 2, len(jpeg) + 1)].tobytes(), 1)
        except TranscodeError:
            refused += 1
    assert 300 < refused < 1000
