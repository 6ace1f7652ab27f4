import os
import pickle
import re
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import simplejpeg

from pipelines.beton import BetonReader, BetonWriter
from pipelines.beton.layout import ALLOCATION, FIELD_DESCRIPTOR, HEADER, legacy_fingerprint, metadata_type

ROW = metadata_type([2, 1])
NUM_SAMPLES = 5
METADATA = HEADER.itemsize + 2 * FIELD_DESCRIPTOR.itemsize


def pixels_of(index: int) -> np.ndarray:
    """Each image has a size of its own, 1×1 and narrow ones among them."""
    height, width = [(1, 1), (9, 8), (16, 33), (1, 200), (40, 3)][index]
    return np.random.default_rng(index).integers(0, 256, (height, width, 3), dtype=np.uint8)


def jpeg_of(index: int) -> bytes:
    return simplejpeg.encode_jpeg(pixels_of(index), 95)


@pytest.fixture(scope="module")
def small_file(tmp_path_factory):
    """Five samples: JPEGs, and raw pixels as sample 2."""
    path = tmp_path_factory.mktemp("reader") / "small.beton"
    with BetonWriter(path, NUM_SAMPLES) as writer:
        for index in range(NUM_SAMPLES):
            if index == 2:
                writer.add_raw(pixels_of(index), label=20)
            else:
                writer.add_jpeg(jpeg_of(index), label=10 * index)
    return path


@pytest.fixture
def tampered(small_file, tmp_path):
    """Writes a copy with some bytes replaced, [(position, bytes)], or truncated to a length."""

    def tamper(*changes: tuple[int, bytes], length: int | None = None):
        data = bytearray(small_file.read_bytes())
        for position, replacement in changes:
            data[position : position + len(replacement)] = replacement
        path = tmp_path / "bad.beton"
        path.write_bytes(data[:length])
        return path

    return tamper


def test_samples_come_back(small_file):
    with BetonReader(small_file) as reader:
        assert len(reader) == NUM_SAMPLES
        for index, (pixels, label) in enumerate(reader):  # ends by IndexError, as a sequence does
            assert (label, pixels.dtype, pixels.flags.writeable) == (10 * index, np.uint8, True)
            expected = pixels_of(index) if index == 2 else simplejpeg.decode_jpeg(jpeg_of(index))
            np.testing.assert_array_equal(pixels, expected)
            assert (reader.heights[index], reader.widths[index]) == pixels.shape[:2]
        assert reader.labels.dtype == np.int64
        assert [reader.is_jpeg(index) for index in range(5)] == [True, True, False, True, True]


def test_image_bytes_are_a_view_of_the_file(small_file):
    with BetonReader(small_file) as reader:
        stored = reader.image_bytes(1)
        assert stored.tobytes() == jpeg_of(1)
        assert not stored.flags.writeable
        assert not stored.flags.owndata
        offset = int(reader.offsets[1])
        assert small_file.read_bytes()[offset : offset + int(reader.sizes[1])] == jpeg_of(1)
    assert stored.tobytes() == jpeg_of(1), "what was handed out outlives the reader"


@pytest.mark.parametrize("index", [1, 2])
def test_decode_into_a_buffer_that_is_used_again(small_file, index):
    buffer = np.full(9000, 77, np.uint8)
    with BetonReader(small_file) as reader:
        pixels = reader.decode(index, buffer)
        assert np.shares_memory(pixels, buffer)
        np.testing.assert_array_equal(pixels, reader[index][0])
        assert (buffer[pixels.size :] == 77).all(), "nothing is written behind the image"
        with pytest.raises(ValueError, match=rf"small\.beton: sample {index}: .*buffer"):
            reader.decode(index, buffer[: pixels.size - 1])


def test_fast_dct_is_ffcvs_setting(small_file):
    with BetonReader(small_file) as reader:
        fast = reader.decode(4, fast_dct=True)
        np.testing.assert_array_equal(fast, simplejpeg.decode_jpeg(jpeg_of(4), fastdct=True))
        assert (fast != reader.decode(4)).any()


def test_pickled_it_opens_the_file_again(small_file):
    with BetonReader(small_file) as reader:
        twin = pickle.loads(pickle.dumps(reader))
        np.testing.assert_array_equal(twin[3][0], reader[3][0])
        assert len(pickle.dumps(reader)) < 500, "only the path travels"
        assert twin.fingerprint == reader.fingerprint


def test_threads_share_a_reader(tiny_beton):
    with BetonReader(tiny_beton) as reader, ThreadPoolExecutor(4) as pool:
        alone = [reader.decode(index) for index in range(len(reader))]
        for _ in range(5):
            for mine, theirs in zip(alone, pool.map(reader.decode, range(len(reader))), strict=True):
                np.testing.assert_array_equal(mine, theirs)


def test_fingerprint_tells_files_apart(tiny_beton, other_beton, tampered, small_file):
    prints = [BetonReader(path).fingerprint for path in (tiny_beton, other_beton, small_file)]
    other_label = BetonReader(tampered((METADATA + ROW.fields["f1"][1], b"\x07"))).fingerprint
    assert len({*prints, other_label}) == 4
    assert re.fullmatch("v2_[0-9a-f]{16}", prints[0])
    assert BetonReader(tiny_beton).fingerprint == prints[0]


def test_closed(small_file):
    reader = BetonReader(small_file)
    reader.close()
    for use in (lambda: reader[0], lambda: reader.image_bytes(0), lambda: reader.fingerprint):
        with pytest.raises(ValueError, match="closed"):
            use()


def test_no_label_field_means_no_labels(tmp_path, small_file):
    """A file of a float and an image, put together by hand: the first field does not shift the second."""
    row, jpeg, page = metadata_type([0, 2]), jpeg_of(1), 1 << 21
    fields = np.zeros(2, FIELD_DESCRIPTOR)
    fields["type_id"], fields["name"] = [0, 2], [b"score", b"picture"]
    header = np.array((2, 2, page, 1, 2 * page), HEADER)
    sample = np.array([(0.5, (0, 8, 9, page))], row)
    entry = np.array([(0, page, len(jpeg))], ALLOCATION)
    start = header.tobytes() + fields.tobytes() + sample.tobytes()
    path = tmp_path / "scores.beton"
    path.write_bytes(start.ljust(page, b"\0") + jpeg.ljust(page, b"\0") + entry.tobytes())
    with BetonReader(path) as reader:
        assert reader.labels.tolist() == [-1]
        np.testing.assert_array_equal(reader[0][0], simplejpeg.decode_jpeg(jpeg))


def u64(number: int) -> bytes:
    return struct.pack("<Q", number)


def u16(number: int) -> bytes:
    return struct.pack("<H", number)


def in_row(sample: int, part: str) -> int:
    """Position of a part of a sample's metadata."""
    return (
        METADATA
        + sample * ROW.itemsize
        + {"mode": 0, "width": 1, "height": 3, "data_ptr": 5, "label": 16}[part]
    )


def in_table(small_file, entry: int, part: str) -> int:
    start = small_file.stat().st_size - NUM_SAMPLES * ALLOCATION.itemsize
    return start + entry * ALLOCATION.itemsize + ALLOCATION.fields[part][1]


PAGE = 1 << 23
HEADER_LIES = {
    "no .beton file of version 2: it starts with version 9": (0, u16(9)),
    "names 0 fields": (2, u16(0)),
    "truncated: 65535 field descriptors": (2, u16(65535)),
    "page size is 8388607, no power of two": (4, struct.pack("<I", PAGE - 1)),
    "page size is 0, no power": (4, struct.pack("<I", 0)),
    "2 fields and 0 samples": (8, u64(0)),
    "truncated: the metadata of 18446744073709551615 samples": (8, u64(2**64 - 1)),
    "truncated: its allocation table is at byte 18446744073709551615": (16, u64(2**64 - 1)),
    "truncated: its allocation table is at byte 3": (16, u64(3)),
    "its field 'image' is of type 255": (HEADER.itemsize, b"\xff"),
    "its field 'label' is of type 77": (HEADER.itemsize + FIELD_DESCRIPTOR.itemsize, b"\x4d"),
    "none of its fields is an image: 'image', 'label'": (HEADER.itemsize, b"\x01"),
}
SAMPLE_LIES = {
    "sample 1: image mode 2 is neither": (in_row(1, "mode"), b"\x02"),
    "sample 3: an image of 1×0 pixels": (in_row(3, "width"), u16(0)),
    "sample 0: an image of 65535×65535 pixels": (in_row(0, "width"), b"\xff\xff\xff\xff"),
    "sample 2: 1584 bytes are no raw image of 16×34 pixels": (in_row(2, "width"), u16(34)),
    f"sample 4: no payload starts at byte {2**64 - 1}": (in_row(4, "data_ptr"), u64(2**64 - 1)),
    "sample 4: no payload starts at byte 0": (in_row(4, "data_ptr"), u64(0)),
}


@pytest.mark.parametrize("message", [*HEADER_LIES, *SAMPLE_LIES])
def test_a_lie_is_refused_by_name(tampered, message):
    path = tampered((HEADER_LIES | SAMPLE_LIES)[message])
    with pytest.raises(
        ValueError, match=rf"bad\.beton: {re.escape(message)}|bad\.beton: .*{re.escape(message)}"
    ):
        BetonReader(path)


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("ptr", 2**64 - 1, "lies outside the data"),
        ("ptr", 0, "lies outside the data"),
        ("size", 2**64 - 1, "lies outside the data"),
        ("size", PAGE, "lies outside the data"),
        ("size", 2000, "runs into the next"),
        ("size", 0, "no payload starts"),
    ],
)
def test_a_lie_in_the_allocation_table_is_refused(tampered, small_file, part, value, message):
    """Entry 1, whose end is 1.6 KB before that of the last payload, in a table that is in the file's order."""
    with pytest.raises(ValueError, match=f"sample 1: .*{message}"):
        BetonReader(tampered((in_table(small_file, 1, part), u64(value))))


def test_every_cut_is_refused(tampered, small_file):
    size = small_file.stat().st_size
    for length in [
        0,
        1,
        23,
        24,
        1000,
        METADATA + 3,
        METADATA + 5 * ROW.itemsize,
        PAGE,
        PAGE + 70,
        2 * PAGE,
        size - 1,
    ]:
        with pytest.raises(
            ValueError, match=r"bad\.beton: (truncated|no \.beton file|its allocation table is empty)"
        ):
            BetonReader(tampered(length=length))


def test_a_jpeg_that_is_not_what_the_metadata_say(tampered):
    """The mismatch is found before a buffer is allocated: 65535×4096 pixels would take 0.8 GB."""
    with pytest.raises(ValueError, match=r"bad\.beton: sample 1: a JPEG of \d+ bytes cannot hold 65535×4096"):
        BetonReader(tampered((in_row(1, "width"), u16(4096)), (in_row(1, "height"), u16(65535))))
    with BetonReader(tampered((in_row(1, "width"), u16(409)))) as reader:
        reader[0]
        for out in (None, np.empty(100, np.uint8)):
            with pytest.raises(
                ValueError, match="sample 1: its JPEG is of 9×8 pixels, the metadata say 9×409"
            ):
                reader.decode(1, out)


def test_a_corrupt_jpeg(tampered, small_file):
    offset, size = (int(a[3]) for a in (BetonReader(small_file).offsets, BetonReader(small_file).sizes))
    for change in ((offset, bytes(size)), (offset + size // 2, bytes(size - size // 2))):
        with pytest.raises(ValueError, match=r"bad\.beton: sample 3: "):
            BetonReader(tampered(change))[3]


def test_cmyk_is_refused(tmp_path, small_file):
    """simplejpeg would hand on four channels as it likes; a writer of ours does not let it in."""
    from PIL import Image

    Image.new("CMYK", (8, 8)).save(tmp_path / "ink.jpg", quality=90)
    jpeg = (tmp_path / "ink.jpg").read_bytes()
    with pytest.raises(ValueError, match="CMYK"), BetonWriter(tmp_path / "ink.beton", 1) as writer:
        writer.add_jpeg(jpeg)
    data, offset = bytearray(small_file.read_bytes()), int(BetonReader(small_file).offsets[2])
    room = int(BetonReader(small_file).sizes[2])
    assert len(jpeg) <= room
    data[offset : offset + len(jpeg)] = jpeg
    for part, value in (("mode", b"\0"), ("width", u16(8)), ("height", u16(8))):
        data[in_row(2, part) : in_row(2, part) + len(value)] = value
    (tmp_path / "ink.beton").write_bytes(data)
    with pytest.raises(ValueError, match="sample 2: its JPEG is CMYK"):
        BetonReader(tmp_path / "ink.beton")[2]


def _complaint(use):
    """The ValueError's message, or None and the result."""
    try:
        return None, use()
    except ValueError as error:
        return str(error), None


@pytest.mark.parametrize("seed", range(4))
def test_random_damage_is_an_error_or_harmless(small_file, tmp_path, seed):
    """Bytes of the header, the descriptors, the metadata, the table and the images; and cuts."""
    data = np.fromfile(small_file, np.uint8)
    descriptor = FIELD_DESCRIPTOR.itemsize
    places = [*range(HEADER.itemsize), *range(METADATA, METADATA + NUM_SAMPLES * ROW.itemsize)]
    places += [HEADER.itemsize + k * descriptor + b for k in range(2) for b in range(17)]
    places += range(len(data) - NUM_SAMPLES * ALLOCATION.itemsize, len(data))
    payload = range(PAGE, PAGE + 3000)
    rng = np.random.default_rng(seed)
    opened = refused = 0
    for trial in range(60):
        bad = data.copy()
        where = rng.choice([*places, *(payload if trial % 3 == 0 else ())], rng.integers(1, 4))
        bad[where] = (
            rng.integers(0, 256, len(where)) if trial % 2 else rng.choice([0, 1, 127, 128, 255], len(where))
        )
        if trial % 5 == 0:
            bad = bad[: rng.integers(0, 3000) if trial % 2 else len(bad) - rng.integers(1, 130)]
        bad.tofile(tmp_path / "fuzz.beton")
        complaint, intact = _complaint(lambda: BetonReader(tmp_path / "fuzz.beton"))
        if complaint is not None:
            assert "fuzz.beton: " in complaint
            refused += 1
            continue
        opened += 1
        for index in range(len(intact)):
            complaint, sample = _complaint(lambda: intact[index])  # noqa: B023 - called at once
            if complaint is None:
                assert sample[0].shape == (intact.heights[index], intact.widths[index], 3)
            else:
                assert f"fuzz.beton: sample {index}: " in complaint
    assert opened > 5
    assert refused > 5


def test_what_is_no_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        BetonReader(tmp_path / "missing.beton")
    with pytest.raises(IsADirectoryError):
        BetonReader(tmp_path)


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="the system can't be told")
def test_will_need_names_the_samples_bytes(small_file, monkeypatch):
    told = []
    monkeypatch.setattr("os.posix_fadvise", lambda fd, *what: told.append(what))
    with BetonReader(small_file) as reader:
        reader.will_need(np.array([3, 0]))
        want = [(reader.offsets[i], reader.sizes[i], os.POSIX_FADV_WILLNEED) for i in (3, 0)]
    assert told == want
    with pytest.raises(ValueError, match="the reader is closed"):
        reader.will_need(np.array([0]))


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts open files in /proc")
def test_no_file_stays_open(small_file, tmp_path):
    (tmp_path / "cut.beton").write_bytes(small_file.read_bytes()[:-1])
    (tmp_path / "empty.beton").write_bytes(b"")
    before = len(os.listdir("/proc/self/fd"))
    for name in ("cut.beton", "empty.beton"):
        with pytest.raises(ValueError, match=name):
            BetonReader(tmp_path / name)
    BetonReader(small_file).close()
    BetonReader(small_file)  # dropped without closing it
    assert len(os.listdir("/proc/self/fd")) == before


def write_raw(path, value: int):
    with BetonWriter(path, 100) as writer:
        for label in range(100):
            writer.add_raw(np.full((2, 2, 3), value, np.uint8), label)
    return path, writer.fingerprint


def test_raw_files_of_equal_shapes_have_different_fingerprints(tmp_path):
    """The files differ only in payload.  Version 0.1 gave them one fingerprint, which is still accepted."""
    black, of_writer = write_raw(tmp_path / "black.beton", 0)
    white, _ = write_raw(tmp_path / "white.beton", 255)
    ours, other = BetonReader(black), BetonReader(white)
    assert ours.fingerprint == of_writer
    assert ours.fingerprint != other.fingerprint
    assert ours.matches_fingerprint(ours.fingerprint)
    assert not other.matches_fingerprint(ours.fingerprint)
    head = black.read_bytes()[: ours._metadata_ends[0]]
    assert ours.matches_fingerprint(legacy_fingerprint(ours.file_bytes, head))
    for saved in (None, 7, [], "", "0123456789abcdef"):
        assert not ours.matches_fingerprint(saved)


def test_labels_beyond_any_class_number_are_refused(tmp_path):
    with BetonWriter(tmp_path / "set.beton", 2) as writer:
        writer.add_raw(np.zeros((2, 2, 3), np.uint8), label=3)
        writer.add_raw(np.zeros((2, 2, 3), np.uint8), label=4_000_000_000)
    reader = BetonReader(tmp_path / "set.beton")
    assert reader.labels[1] == 4_000_000_000, "the images can be read"
    with pytest.raises(ValueError, match=r"set\.beton: sample 1: label 4000000000"):
        _ = reader.num_classes
    with BetonWriter(tmp_path / "set.beton", 1) as writer:
        writer.add_raw(np.zeros((2, 2, 3), np.uint8))
    assert BetonReader(tmp_path / "set.beton").num_classes == 0


def test_a_file_system_without_memory_maps_is_named(tiny_beton, monkeypatch):
    def refuse(*_, **__):
        raise OSError(19, "No such device")

    monkeypatch.setattr("pipelines.beton.mapping.mmap.mmap", refuse)
    with pytest.raises(OSError, match=r"tiny\.beton"):
        BetonReader(tiny_beton)
