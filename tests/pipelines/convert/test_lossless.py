"""`--jpeg lossless`, and the restart markers of `recompress`: what is stored, and that readers of JPEGs can read it."""

import io

import numpy as np
import pytest
import simplejpeg
from PIL import Image
from support.jpegs import SUBSAMPLINGS, draw_pixels, save
from support.jpegs import encode as encode_jpeg

from pipelines import BetonReader
from pipelines.convert import Encoding, convert, encode, open_source
from pipelines.jpeg import add_restarts

LOSSLESS = Encoding(jpeg="lossless")


def interval(jpeg: bytes) -> int:
    """MCUs per restart interval, 0 without a DRI segment."""
    at = jpeg.find(b"\xff\xdd\x00\x04")
    return int.from_bytes(jpeg[at + 4 : at + 6], "big") if at >= 0 else 0


@pytest.mark.parametrize("subsampling", SUBSAMPLINGS)
def test_the_pixels_are_those_of_the_original(subsampling):
    jpeg = encode_jpeg(draw_pixels(np.random.default_rng(0), 120, 200), subsampling)
    stored = encode(jpeg, LOSSLESS)
    assert (stored.transcoded, stored.kept, stored.note) == (True, False, "")
    assert interval(stored.image) > 0
    assert np.array_equal(simplejpeg.decode_jpeg(stored.image), simplejpeg.decode_jpeg(jpeg))
    assert np.array_equal(
        np.asarray(Image.open(io.BytesIO(stored.image))), np.asarray(Image.open(io.BytesIO(jpeg)))
    )


def test_what_cannot_be_transcoded_is_encoded_or_kept_with_a_note():
    pixels = draw_pixels(np.random.default_rng(0), 64, 64)
    progressive = encode(save(pixels, progressive=True), LOSSLESS)
    assert progressive.note == "progressive JPEG" and not progressive.kept and interval(progressive.image)
    large = encode(encode_jpeg(draw_pixels(np.random.default_rng(0), 40, 600), "420"), LOSSLESS)
    assert "longer side" in large.note and interval(large.image)
    # two scans, each of its own components: baseline, but not of one scan
    separate = simplejpeg.encode_jpeg(pixels, 90)
    assert encode(separate, LOSSLESS).transcoded


def test_a_corrupt_file_is_not_transcoded():
    jpeg = encode_jpeg(draw_pixels(np.random.default_rng(0), 120, 200), "420")
    stored = encode(jpeg[:-2000] + b"\xff\xd9", LOSSLESS)
    assert not stored.transcoded and stored.warning


@pytest.mark.parametrize(("restart", "expected"), [("auto", 1), ("none", 0), (2, 2), (1000, 20)])
def test_recompress_writes_markers(restart, expected):
    pixels = draw_pixels(np.random.default_rng(0), 120, 320)  # 20 MCUs a row
    stored = encode(save(pixels), Encoding(jpeg="recompress", restart=restart))
    assert interval(stored.image) == expected
    plain = encode(save(pixels), Encoding(jpeg="recompress", restart="none"))
    assert np.array_equal(simplejpeg.decode_jpeg(stored.image), simplejpeg.decode_jpeg(plain.image))


@pytest.mark.parametrize("restart", [0, -1, "always"])
def test_a_wrong_interval_is_refused(restart):
    with pytest.raises(ValueError, match="restart"):
        Encoding(restart=restart)


def test_the_report_counts_them(tiny_photos, tmp_path):
    report = convert(open_source([str(tiny_photos)]), tmp_path / "x.beton", LOSSLESS)
    assert (report.transcoded, report.kept, report.encoded, report.written) == (40, 0, 0, 40)
    with BetonReader(tmp_path / "x.beton") as reader:
        assert reader.sidecar["counts"]["transcoded"] == 40


@pytest.mark.slow
def test_photos(imagenet_photos, tmp_path):
    """At least 95 % of those within --max-side get their markers."""
    out, kept = tmp_path / "lossless.beton", tmp_path / "keep.beton"
    report = convert(open_source([str(imagenet_photos)]), out, LOSSLESS, workers=2)
    keep = convert(open_source([str(imagenet_photos)]), kept, Encoding(), workers=2)
    assert report.transcoded >= 0.95 * keep.kept
    with BetonReader(out) as one, BetonReader(kept) as other:
        for index in range(0, len(one), 5):
            assert np.array_equal(one[index][0], other[index][0])


@pytest.mark.slow
def test_stock_ffcv_and_dali_read_them(tiny_photos, tmp_path, require_package):
    """Markers are nothing to a decoder that does not care."""
    require_package("ffcv")
    require_package("nvidia.dali")
    from pipelines import TwoViewLoader

    files = {}
    for restart in ("none", 1):
        files[restart] = tmp_path / f"{restart}.beton"
        encoding = Encoding(jpeg="recompress", restart=restart)
        convert(open_source([str(tiny_photos)]), files[restart], encoding, order="source")
    for engine in ("ffcv", "dali", "torchvision", "native"):
        batches = []
        for file in files.values():
            with TwoViewLoader(file, 8, size=32, engine=engine, num_threads=1, augment=False) as loader:
                batches.append(np.asarray(next(iter(loader)).views).astype(int))
        # DALI decodes a window and a whole image with a rounding of their own
        assert np.abs(batches[0] - batches[1]).max() <= (1 if engine == "dali" else 0), engine


def test_markers_are_not_added_twice():
    jpeg = add_restarts(encode_jpeg(draw_pixels(np.random.default_rng(0), 120, 320), "420"), 4)
    assert add_restarts(jpeg, "auto") == jpeg
