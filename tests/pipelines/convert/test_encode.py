import io
import time

import numpy as np
import pytest
import simplejpeg
from PIL import Image, PngImagePlugin
from PIL.PngImagePlugin import PngInfo
from support.jpegs import many_scans, resized_header

from pipelines.convert import Encoding, encode, pillow
from pipelines.convert.encode import Stored

LIMITS = Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK

KEEP, RECOMPRESS = Encoding(), Encoding(jpeg="recompress")
RNG = np.random.default_rng(0)
PIXELS = np.asarray(
    Image.fromarray(RNG.integers(0, 256, (9, 12, 3), dtype=np.uint8)).resize(
        (96, 64), Image.Resampling.BICUBIC
    )
)
"""A soft picture of 64×96 pixels."""


def saved(image: Image.Image | np.ndarray, kind: str, **options) -> bytes:
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_a_baseline_jpeg_is_kept_byte_for_byte():
    gray, exif = Image.fromarray(PIXELS).convert("L"), Image.Exif()
    exif[0x0112] = 6  # "rotate by 90°": the tag travels along, and is ignored
    for jpeg in (
        saved(PIXELS, "JPEG"),
        saved(PIXELS, "JPEG", quality=100, subsampling=0),
        saved(PIXELS, "JPEG", restart_marker_blocks=2),
        saved(gray, "JPEG"),
        saved(PIXELS, "JPEG", exif=exif, comment=b"x" * 60000),
    ):
        assert encode(jpeg, KEEP) == Stored(jpeg, True)


def with_byte(data: bytes, position: int, value: int) -> bytes:
    return data[:position] + bytes([value]) + data[position + 1 :]


def jpeg_in_rgb() -> bytes:
    """Three components called R, G, B: libjpeg takes them for RGB."""
    data = saved(PIXELS, "JPEG", subsampling=0, keep_rgb=True)
    assert simplejpeg.decode_jpeg_header(data)[2] == "RGB"
    return data


UNFIT = {
    "progressive JPEG": saved(PIXELS, "JPEG", progressive=True),
    "CMYK JPEG": saved(Image.fromarray(PIXELS).convert("CMYK"), "JPEG"),
    "RGB JPEG": jpeg_in_rgb(),
    "not JPEG": saved(PIXELS, "PNG"),
    "longer side over 500 pixels": saved(np.zeros((501, 3, 3), np.uint8), "JPEG"),
}


@pytest.mark.parametrize("note", UNFIT)
def test_what_cannot_be_kept_is_encoded_with_a_note(note):
    stored = encode(UNFIT[note], KEEP)
    assert (stored.kept, stored.note) == (False, note)
    height, width, colorspace, subsampling = simplejpeg.decode_jpeg_header(stored.image)
    assert (colorspace, subsampling) == ("YCbCr", "420")
    if note.startswith("longer"):
        assert (height, width) == (500, 3)
    else:
        truth = Image.open(io.BytesIO(UNFIT[note])).convert("RGB")
        error = np.abs(simplejpeg.decode_jpeg(stored.image).astype(int) - np.asarray(truth))
        assert (height, width) == (64, 96)
        assert error.mean() < 4, "quality 90 with half the chroma resolution"


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM"])
def test_formats(kind):
    """A gray ramp survives each of them."""
    ramp = np.repeat(np.tile(np.arange(0, 256, 4, dtype=np.uint8), (20, 1))[:, :, None], 3, axis=2)
    stored = encode(saved(ramp, kind), Encoding(mode="raw"))
    assert np.abs(stored.image.astype(int) - ramp).max() <= (3 if kind == "WEBP" else 0)


def test_recompress_is_ffcvs_convention():
    stored = encode(saved(np.zeros((300, 1000, 3), np.uint8), "JPEG"), RECOMPRESS)
    assert not stored.kept
    assert simplejpeg.decode_jpeg_header(stored.image) == (150, 500, "YCbCr", "420")
    # the quantisation tables are libjpeg's of quality 90, whatever the library's default is
    same = Image.open(io.BytesIO(saved(np.zeros((8, 8, 3), np.uint8), "JPEG", quality=90))).quantization
    assert Image.open(io.BytesIO(stored.image)).quantization == same
    small = encode(saved(PIXELS, "JPEG", quality=100), RECOMPRESS)
    assert simplejpeg.decode_jpeg_header(small.image)[:2] == (64, 96), "nothing is enlarged"


def test_gray_becomes_color_when_encoded():
    stored = encode(saved(Image.fromarray(PIXELS).convert("L"), "JPEG"), RECOMPRESS)
    assert simplejpeg.decode_jpeg_header(stored.image)[2] == "YCbCr"


def test_quality_and_size_are_the_users():
    rough = encode(saved(PIXELS, "PNG"), Encoding(max_side=48, quality=30)).image
    assert simplejpeg.decode_jpeg_header(rough)[:2] == (32, 48)
    pillows = Image.open(io.BytesIO(saved(PIXELS, "JPEG", quality=30)))
    assert Image.open(io.BytesIO(rough)).quantization == pillows.quantization


def test_the_resize_is_antialiased():
    """Stripes of one pixel become gray; taking every fourth pixel would leave them black or white."""
    stripes = np.zeros((64, 400, 3), np.uint8)
    stripes[:, ::2] = 255
    small = encode(saved(stripes, "PNG"), Encoding(mode="raw", max_side=100)).image
    assert small.shape == (16, 100, 3)
    assert np.abs(small[:, 2:-2].astype(int) - 127).max() <= 2


@pytest.mark.parametrize(
    ("shape", "stored"), [((1, 1), (1, 1)), ((1, 10000), (1, 500)), ((10000, 3), (500, 1))]
)
def test_extreme_shapes(shape, stored):
    image = saved(np.full((*shape, 3), 90, np.uint8), "JPEG")
    for encoding in (KEEP, RECOMPRESS):
        assert simplejpeg.decode_jpeg_header(encode(image, encoding).image)[:2] == stored
    assert encode(image, Encoding(mode="raw")).image.shape == (*stored, 3)


def test_raw_pixels():
    stored = encode(saved(PIXELS, "PNG"), Encoding(mode="raw"))
    np.testing.assert_array_equal(stored.image, PIXELS)
    assert (stored.kept, stored.note) == (False, "")
    stored = encode(PIXELS[:, ::-1], Encoding(mode="raw"))
    np.testing.assert_array_equal(stored.image, PIXELS[:, ::-1])
    jpeg = saved(PIXELS, "JPEG")
    np.testing.assert_array_equal(encode(jpeg, Encoding(mode="raw")).image, simplejpeg.decode_jpeg(jpeg))


def test_pixels_of_a_data_set_are_encoded():
    stored = encode(PIXELS, KEEP)
    assert (stored.kept, stored.note) == (False, "pixels")
    assert np.abs(simplejpeg.decode_jpeg(stored.image).astype(int) - PIXELS).mean() < 4


def test_sixteen_bits_keep_their_upper_eight():
    """Pillow's own conversion cuts off at 255 and gives an all but white picture."""
    ramp = np.arange(0, 65536, 1024, dtype=np.uint16)
    deep = saved(Image.fromarray(np.tile(ramp, (4, 1))), "PNG")
    stored = encode(deep, Encoding(mode="raw"))
    np.testing.assert_array_equal(stored.image[0, :, 1], np.arange(0, 256, 4))


def test_palette_and_transparency_show_what_pillow_shows(recwarn):
    rgba = np.dstack([PIXELS, np.tile(np.arange(96, dtype=np.uint8), (64, 1))])
    palette = Image.fromarray(PIXELS).quantize(16)
    for image, options in (
        (Image.fromarray(rgba), {}),
        (palette, {}),
        (palette, {"transparency": bytes(range(16))}),
        (Image.fromarray(PIXELS).convert("1"), {}),
        (Image.fromarray(rgba).convert("LA"), {}),
    ):
        stored = encode(saved(image, "PNG", **options), Encoding(mode="raw"))
        np.testing.assert_array_equal(stored.image, np.asarray(image.convert("RGB")))
    assert not recwarn.list


def test_exif_orientation_is_ignored():
    exif = Image.Exif()
    exif[0x0112] = 6
    for kind in ("JPEG", "PNG", "WEBP"):
        assert encode(saved(PIXELS, kind, exif=exif), Encoding(mode="raw")).image.shape == (64, 96, 3)


def with_junk() -> bytes:
    """Bytes between two markers, which libjpeg reports and skips: Pillow reads it, strict decoding does not."""
    jpeg = saved(PIXELS, "JPEG")
    return jpeg[:20] + b"junk" + jpeg[20:]


def test_what_only_pillow_reads_is_encoded_with_a_note():
    jpeg = with_junk()
    stored = encode(jpeg, KEEP)
    assert not stored.kept
    assert stored.note.startswith("strict decoding refuses it: ")
    simplejpeg.decode_jpeg(stored.image, strict=True)
    for encoding in (KEEP, RECOMPRESS, Encoding(mode="raw")):
        stored = encode(jpeg, encoding)
        assert stored.note == stored.warning
        assert stored.note.startswith("strict decoding refuses it: ")


def test_a_corrupt_progressive_jpeg_says_both():
    """Pillow reads it, the strict decoder does not: its reason must not be hidden behind the kind of the file."""
    jpeg = saved(PIXELS, "JPEG", progressive=True)
    stored = encode(jpeg[:20] + b"junk" + jpeg[20:], KEEP)
    assert stored.note.startswith("progressive JPEG; strict decoding refuses it: ")
    assert stored.note.endswith(stored.warning)
    assert encode(jpeg, KEEP).warning == ""


def test_many_scans_are_refused_before_they_are_decoded():
    bomb = many_scans(2000, 5000)
    start = time.process_time()
    for encoding in (KEEP, RECOMPRESS, Encoding(max_scans=4999)):
        with pytest.raises(ValueError, match="scans"):
            encode(bomb, encoding)
    assert time.process_time() - start < 1
    # bytes within a comment are no scans
    comment = b"\xff\xfe\x04\x02" + b"\xff\xda" * 512
    jpeg = saved(PIXELS, "JPEG")
    assert encode(jpeg[:2] + comment + jpeg[2:], KEEP).kept


def test_decoders_refuse_a_second_scan_behind_one_of_all_components():
    """So a sequential JPEG whose first scan has all components need not be searched for more."""
    jpeg = saved(PIXELS, "JPEG")
    scan = jpeg[jpeg.index(b"\xff\xda") : -2]
    start = time.process_time()
    with pytest.raises(ValueError, match="scan"):
        encode(
            jpeg[:-2] + 5000 * scan + b"\xff\xd9",
            Encoding(jpeg="keep", verify="full", max_pixels_per_byte=10**6),
        )
    assert time.process_time() - start < 1


@pytest.mark.parametrize("progressive", [False, True])
def test_a_header_over_no_data_is_refused_before_it_takes_memory(progressive):
    bomb = resized_header(saved(PIXELS, "JPEG", progressive=progressive), 13000, 13000)
    with pytest.raises(ValueError, match="max_pixels_per_byte"):
        encode(bomb, KEEP)


def test_a_fax_over_no_data_is_refused():
    """Group 4 stores a white line in a bit; the setting lets those through that are meant."""
    fax = saved(Image.new("1", (9000, 9000), 1), "TIFF", compression="group4")
    assert len(fax) < 6000
    with pytest.raises(ValueError, match="max_pixels_per_byte"):
        encode(fax, KEEP)
    assert not encode(fax, Encoding(max_pixels_per_byte=10**6)).kept


def test_a_webp_is_measured_before_it_is_opened():
    """Pillow allocates the canvas when it opens the file."""
    small = saved(Image.new("RGB", (16, 16)), "WEBP", lossless=True)
    at = small.find(b"VP8L") + 9
    claimed = small[:at] + (16383 | 16383 << 14).to_bytes(4, "little") + small[at + 4 :]
    with pytest.raises((ValueError, OSError)):
        encode(claimed, KEEP)
    assert pillow._webp_size(claimed) == (16384, 16384)
    for options in ({"lossless": True}, {}, {"exif": b"Exif\0\0"}):
        assert pillow._webp_size(saved(PIXELS, "WEBP", **options)) == (64, 96)


def jpeg_441() -> bytes:
    """Chroma at a quarter of the height: simplejpeg knows no such sampling."""
    # with gray pixels any order of blocks is the same picture
    jpeg = bytearray(saved(np.full((32, 32, 3), 90, np.uint8), "JPEG", subsampling=2))
    at = jpeg.find(b"\xff\xc0")
    assert jpeg[at + 11] == 0x22
    jpeg[at + 11] = 0x14
    return bytes(jpeg)


@pytest.mark.parametrize("encoding", [KEEP, RECOMPRESS, Encoding(mode="raw")], ids=["keep", "new", "raw"])
def test_a_chroma_sampling_that_simplejpeg_does_not_know(encoding):
    jpeg = jpeg_441()
    with pytest.raises(KeyError):
        simplejpeg.decode_jpeg_header(jpeg)
    stored = encode(jpeg, encoding)
    assert not stored.kept
    pixels = stored.image if encoding.mode == "raw" else simplejpeg.decode_jpeg(stored.image)
    assert np.abs(pixels.astype(int) - 90).max() <= 2
    assert ("simplejpeg does not read" in stored.note) == (encoding == KEEP)


def test_a_png_with_much_text_is_read():
    info = PngInfo()
    info.add_text("long", "x" * 3_000_000, zip=True)
    assert not encode(saved(PIXELS, "PNG", pnginfo=info), KEEP).kept
    assert (Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK) == LIMITS, "the process's are restored"


def test_pillows_limits_are_shared_by_threads_and_restored():
    with pillow.our_limits():
        with pillow.our_limits():
            pass
        assert Image.MAX_IMAGE_PIXELS is None
    assert (Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK) == LIMITS


def test_twelve_bits_in_sixteen():
    ramp = np.tile(np.arange(0, 4096, 64, dtype=np.uint16), (4, 1))
    dark = encode(saved(Image.fromarray(ramp), "TIFF"), Encoding(mode="raw"))
    assert "nearly black" in dark.note
    assert dark.image.max() == 15
    said = encode(saved(Image.fromarray(ramp), "TIFF", tiffinfo={281: 4095}), Encoding(mode="raw"))
    assert said.note == ""
    np.testing.assert_array_equal(said.image[0, :, 0], np.arange(0, 256, 4))


def with_truncated_scan() -> bytes:
    """Return a JPEG with intact headers whose picture ends early, but with an end marker, so that it looks complete."""
    jpeg = saved(PIXELS, "JPEG", quality=95)
    return jpeg[: len(jpeg) // 2] + b"\xff\xd9"


def test_verify():
    """ "header" looks no further than the header; "full" finds the damage, which Pillow then finds too."""
    corrupt = with_truncated_scan()
    assert encode(corrupt, Encoding(verify="header")).kept
    stored = encode(corrupt, Encoding(verify="full"))
    assert not stored.kept
    assert stored.note.startswith("strict decoding refuses it: ")


def test_a_jpeg_larger_than_a_page_is_encoded():
    """Its picture is small, its comments are not; the page of the format is 8 MiB."""
    jpeg = saved(PIXELS, "JPEG")
    comments = (b"\xff\xfe\xff\xff" + bytes(0xFFFD)) * 130
    stored = encode(jpeg[:2] + comments + jpeg[2:], KEEP)
    assert (stored.kept, stored.note) == (False, "file larger than a page")
    assert len(stored.image) < 10_000


FLOAT = Image.fromarray(np.zeros((4, 4), np.float32))
INT32 = Image.fromarray(np.zeros((4, 4), np.int32))
CORRUPT = {
    "empty": b"",
    "no image of a known format": b"<html>404 not found</html>",
    "truncated": saved(PIXELS, "JPEG")[:1200],
    "Truncated|truncated|broken|CRC|not enough|unrecognized": saved(PIXELS, "PNG")[:1500],
    "floating-point": saved(FLOAT, "TIFF"),
    "32-bit integer": saved(INT32, "TIFF"),
    "known format|SOI|subsampling|truncated|read": b"\xff\xd8" + bytes(300),
}


@pytest.mark.parametrize("reason", CORRUPT)
@pytest.mark.parametrize("encoding", [KEEP, RECOMPRESS, Encoding(mode="raw")])
def test_what_is_no_image_says_so(reason, encoding):
    with pytest.raises((ValueError, OSError, SyntaxError), match=reason):
        encode(CORRUPT[reason], encoding)


def test_a_huge_image_is_refused_before_it_is_decoded():
    """A PNG of 20,000² one-bit pixels takes 50 KB, and 1.2 GB in memory."""
    huge = saved(Image.new("1", (20000, 20000)), "PNG")
    with pytest.raises((ValueError, Image.DecompressionBombError), match="pixels"):
        encode(huge, KEEP)


def test_values_out_of_range():
    for values in ({"max_side": 0}, {"max_side": 70000}, {"quality": 0}, {"quality": 101}):
        with pytest.raises(ValueError, match="must be 1 to"):
            Encoding(**values)
