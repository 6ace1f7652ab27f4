"""libturbojpeg behind compiled code: simplejpeg's pixels to the bit, and the engine with either of them."""

import warnings

import numpy as np
import pytest
import simplejpeg

from pipelines import BetonReader, BetonWriter, TwoViewLoader
from pipelines.engines.native import engine as native
from pipelines.engines.native.turbojpeg import Decoder, bind_turbojpeg, cached_start, decode_samples


@pytest.fixture(autouse=True)
def _installed(require_turbojpeg):
    pass


def decode(reader: BetonReader, indices, room: int = 1 << 24, poison: int = 0):
    """(images, starts) of as many samples as were decoded."""
    indices = np.asarray(indices)
    pixels, starts = np.full(room, poison, np.uint8), np.full(len(indices), -1)
    columns = reader.offsets, reader.sizes, reader.modes, reader.heights, reader.widths
    decoder = Decoder()
    count = decode_samples(decoder.address, reader.data, *columns, indices, 0, len(indices), pixels, starts)
    assert (starts[count:] == -1).all()
    return pixels, starts[:count]


@pytest.mark.parametrize("which", ["photo_beton", "keep_beton", "tiny_beton"])
def test_the_bits_of_simplejpeg(request, which):
    """Color and gray, every subsampling that the photos have, and EXIF tags."""
    with BetonReader(request.getfixturevalue(which)) as reader:
        for low in range(0, len(reader), 10):
            indices = np.arange(low, min(low + 10, len(reader)))[::-1].copy()
            images, starts = decode(reader, indices)
            assert len(starts) == len(indices)
            for index, start in zip(indices, starts, strict=True):
                expected = simplejpeg.decode_jpeg(reader.image_bytes(index))
                found = images[start : start + expected.size].reshape(expected.shape)
                np.testing.assert_array_equal(found, expected)


def test_raw_samples(tmp_path):
    rng, path = np.random.default_rng(0), tmp_path / "raw.beton"
    pixels = [rng.integers(0, 256, (5, 7 + k, 3), np.uint8) for k in range(3)]
    with BetonWriter(path, 3) as writer:
        for image in pixels:
            writer.add_raw(image, 0)
    with BetonReader(path) as reader:
        images, starts = decode(reader, [2, 0, 1])
    for index, start in zip([2, 0, 1], starts, strict=True):
        np.testing.assert_array_equal(images[start : start + pixels[index].size], pixels[index].ravel())


def test_stops_at_a_corrupt_sample(corrupt_beton):
    with BetonReader(corrupt_beton) as reader:
        assert len(decode(reader, [2, 3, 4, 5])[1]) == 2  # sample 4 is truncated
        assert len(decode(reader, [4, 5])[1]) == 0
        reader.heights[7] += 1  # a lie of the metadata
        assert len(decode(reader, [6, 7, 8])[1]) == 1


def test_stops_where_there_is_no_room(tiny_beton):
    with BetonReader(tiny_beton) as reader:
        sizes = 3 * reader.heights.astype(int) * reader.widths
        # up to 31 bytes before each image are left free
        for room, count in ((sizes[:3].sum() + 3 * 31, 3), (sizes[:3].sum() - 1, 2), (sizes[0] - 1, 0)):
            assert len(decode(reader, [0, 1, 2, 3], room)[1]) == count
        images, starts = decode(reader, [0, 1], poison=77)
        assert (images[starts[1] + sizes[1] :] == 77).all()


def test_decoders_are_freed(monkeypatch):
    freed = []
    library = bind_turbojpeg()
    monkeypatch.setattr(library, "tjDestroy", freed.append)
    address = Decoder().address
    assert freed == [address]
    monkeypatch.undo()
    library.tjDestroy(address)


def contents(file, **options):
    with TwoViewLoader(file, 6, size=32, seed=3, num_threads=2, **options) as loader:
        engine = loader._engine
        return engine.decodes_with, [(b.indices.numpy(), b.labels.numpy(), b.views.numpy()) for b in loader]


@pytest.mark.parametrize("engine", ["native", "resident"])
@pytest.mark.parametrize("which", ["corrupt_beton", "cifar_beton_small"])
def test_the_engine_with_and_without(request, which, engine):
    """The same batches, replaced samples and warnings, whoever decodes: for images larger and smaller than SMALL."""
    file = request.getfixturevalue(which)
    found = {}
    for name in ("libturbojpeg", "simplejpeg"):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            decodes_with, batches = contents(file, engine=engine)
        assert decodes_with == name
        found[name] = [str(w.message) for w in said], batches
        request.getfixturevalue("only_simplejpeg")
    (said, ours), (also_said, theirs) = found.values()
    assert said == also_said
    assert bool(said) == (which == "corrupt_beton")
    for one, other in zip(ours, theirs, strict=True):
        for left, right in zip(one, other, strict=True):
            np.testing.assert_array_equal(left, right)


def test_rows_per_claim_do_not_matter(corrupt_beton, monkeypatch):
    """Images of 30 to 129 pixels in claims of one and of hundreds: what does not fit is taken in parts."""
    batches = []
    for pixels in (1, native.CLAIM_PIXELS, 1 << 22):
        monkeypatch.setattr(native, "CLAIM_PIXELS", pixels)
        with pytest.warns(RuntimeWarning, match="sample 4"):
            batches.append(contents(corrupt_beton)[1])
    for other in batches[1:]:
        for one, two in zip(batches[0], other, strict=True):
            for left, right in zip(one, two, strict=True):
                np.testing.assert_array_equal(left, right)


def test_a_machine_without(only_simplejpeg):
    with pytest.raises(OSError, match=r"no libturbojpeg was found: apt-get install libturbojpeg0-dev"):
        Decoder()


@pytest.mark.parametrize("offset", [0, 1, 2, 31, 32, 33, 1000])
def test_images_begin_where_the_decoder_writes_through_the_cache(offset):
    pixels = np.empty(3000, np.uint8)[offset:]
    for at in (0, 1, 5, 32, 777):
        start = cached_start(pixels, at)
        assert at <= start < at + 32
        assert (pixels.ctypes.data + start) % 32 == 1


def test_decoded_images_begin_there(tiny_beton):
    with BetonReader(tiny_beton) as reader:
        images, starts = decode(reader, np.arange(8))
        assert {(images.ctypes.data + start) % 32 for start in starts.tolist()} == {1}
