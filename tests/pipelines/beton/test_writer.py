import errno
import os
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
import simplejpeg

from pipelines.beton import BetonReader, BetonWriter
from pipelines.beton.layout import ALLOCATION, FIELD_DESCRIPTOR, HEADER, metadata_type, page_size
from pipelines.system import atomic_file

JPEG = simplejpeg.encode_jpeg(np.zeros((8, 8, 3), np.uint8))
NOISE = np.random.default_rng(0).integers(0, 256, (1000, 900, 3), dtype=np.uint8)


def test_sizes_that_the_format_fixes():
    assert (HEADER.itemsize, FIELD_DESCRIPTOR.itemsize, ALLOCATION.itemsize) == (24, 1041, 24)
    # 13 bytes of image, 3 of padding, 8 of label; the image does not move a field before it
    assert metadata_type([2, 1]).itemsize == 24
    assert metadata_type([1, 2]).itemsize == 24
    assert metadata_type([3, 2, 1, 0]).fields["f2"][1] == 32


@pytest.mark.parametrize(
    ("max_side", "mebibytes"),
    [(1, 8), (500, 8), (1672, 8), (1673, 16), (2364, 16), (2365, 32), (16384, 1024), (65535, 1024)],
)
def test_page_size(max_side, mebibytes):
    """The next power of two ≥ 3·max_side², at least 8 MiB; 3·1672² is the last below 2²³."""
    assert page_size(max_side) == mebibytes << 20


def test_no_sample_straddles_a_page(tmp_path):
    """2.7 MB each: three to a page of 8 MiB; the file ends with whole pages and the table."""
    with BetonWriter(tmp_path / "pages.beton", 7) as writer:
        for index in range(7):
            writer.add_raw(np.roll(NOISE, index), label=index)
    with BetonReader(tmp_path / "pages.beton") as reader:
        first, last = (
            reader.offsets // reader.page_size,
            (reader.offsets + reader.sizes - 1) // reader.page_size,
        )
        assert first.tolist() == last.tolist() == [1, 1, 1, 2, 2, 2, 3]
        assert reader.file_bytes == writer.file_bytes == 4 * reader.page_size + 7 * ALLOCATION.itemsize
        for index in range(7):
            np.testing.assert_array_equal(reader[index][0], np.roll(NOISE, index))


def test_a_payload_that_fills_its_page(tmp_path):
    whole = JPEG + bytes(page_size(500) - len(JPEG))  # bytes after the end of a JPEG are ignored
    with BetonWriter(tmp_path / "full.beton", 3) as writer:
        with pytest.raises(ValueError, match="8388609 bytes does not fit into a page of 8388608"):
            writer.add_jpeg(whole + b"\0")
        for jpeg in (whole, JPEG, whole):
            writer.add_jpeg(jpeg)
    with BetonReader(tmp_path / "full.beton") as reader:
        assert (reader.offsets // reader.page_size).tolist() == [1, 2, 3]
        assert reader.image_bytes(2).tobytes() == whole


def test_fewer_samples_than_announced(tmp_path):
    with BetonWriter(tmp_path / "few.beton", 1000) as writer:
        writer.add_jpeg(JPEG, label=3)
    with BetonReader(tmp_path / "few.beton") as reader:
        assert reader.labels.tolist() == [3]


def test_metadata_larger_than_a_page(tmp_path):
    """400,000 rows of 24 bytes take two pages; the table is written in several pieces."""
    count = 400_000
    with BetonWriter(tmp_path / "many.beton", count) as writer:
        for index in range(count):
            writer.add_jpeg(JPEG, label=index)
    with BetonReader(tmp_path / "many.beton") as reader:
        assert reader.offsets[0] == 2 * reader.page_size
        assert (reader.labels == np.arange(count)).all()
        assert (reader.sizes == len(JPEG)).all()
        assert (np.diff(reader.offsets) >= len(JPEG)).all()


def test_memory_per_sample(tmp_path):
    """A sample takes at most 64 bytes; buffers cancel in the difference of two sizes."""

    def peak(count: int) -> int:
        tracemalloc.start()
        with BetonWriter(tmp_path / "memory.beton", count) as writer:
            for _ in range(count):
                writer.add_jpeg(JPEG)
        _, top = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return top

    assert peak(45_000) - peak(15_000) <= 64 * 30_000


def write_big(path, error: type[BaseException] | None = None) -> None:
    """Nine images of 2.7 MB; then, it may be, an error."""
    with BetonWriter(path, 10) as writer:
        for _ in range(9):
            writer.add_raw(NOISE)
        assert len(list(path.parent.glob(".big.beton.*.partial"))) == 1, "it is written beside"
        if error:
            raise error


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_file_disappears(tmp_path, error):
    path = tmp_path / "big.beton"
    path.write_bytes(b"what was here before")
    with pytest.raises(error):
        write_big(path, error)
    assert [entry.name for entry in tmp_path.iterdir()] == ["big.beton"]
    assert path.read_bytes() == b"what was here before"


def test_permissions_are_those_of_any_new_file(tmp_path):
    (tmp_path / "plain").touch()
    with BetonWriter(tmp_path / "new.beton", 1) as writer:
        writer.add_jpeg(JPEG)
    assert (tmp_path / "new.beton").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_no_space_left(tmp_path, monkeypatch):
    """The device is full after 4 MB; the message names the file, not the hidden one, and nothing is left."""
    room, pwrite = [4 << 20], os.pwrite

    def full(descriptor: int, data: memoryview, offset: int) -> int:
        written = pwrite(descriptor, data[: room[0]], offset)
        room[0] -= written
        if not written:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return written

    monkeypatch.setattr(atomic_file.os, "pwrite", full)
    with pytest.raises(OSError, match="No space left") as caught:
        write_big(tmp_path / "big.beton")
    assert caught.value.filename == str(tmp_path / "big.beton")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="limits of POSIX")
def test_file_size_limit(tmp_path):
    """The real thing, in a process that may write files of 10 MB."""
    script = """
import resource, sys, numpy as np
from pipelines.beton import BetonWriter
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000_000, 10_000_000))
try:
    with BetonWriter(sys.argv[1], 9) as writer:
        for _ in range(9):
            writer.add_raw(np.zeros((1000, 900, 3), np.uint8))
except OSError as error:
    print(error)
"""
    command = [sys.executable, "-c", script, str(tmp_path / "big.beton")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == f"[Errno {errno.EFBIG}] File too large: '{tmp_path / 'big.beton'}'", (
        done.stderr
    )
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_written(tmp_path):
    path = tmp_path / "bad.beton"
    with pytest.raises(ValueError, match="no sample to write"), BetonWriter(path, 1):
        pass
    assert not path.exists()
    with BetonWriter(path, 1) as writer:
        for pixels, message in (
            (np.zeros((4, 4), np.uint8), "got uint8"),
            (np.zeros((4, 4, 3), np.float32), "got float32"),
            (np.zeros((0, 4, 3), np.uint8), "0×4"),
            (np.zeros((1, 65536, 3), np.uint8), "1×65536"),
            (np.zeros((1700, 1700, 3), np.uint8), "does not fit into a page"),
        ):
            with pytest.raises(ValueError, match=message):
                writer.add_raw(pixels)
        with pytest.raises(ValueError, match="JPEG"):
            writer.add_jpeg(b"no image")
        writer.add_jpeg(JPEG)
        with pytest.raises(ValueError, match="more samples than the 1"):
            writer.add_jpeg(JPEG)
    for arguments in ((0,), (1, 0)):
        with pytest.raises(ValueError, match="must be ≥ 1"):
            BetonWriter(path, *arguments)
    with pytest.raises(FileNotFoundError) as caught, BetonWriter(tmp_path / "no" / "folder.beton", 1):
        pass
    assert caught.value.filename == str(tmp_path / "no" / "folder.beton")


def test_samples_are_added_inside_the_block_only(tmp_path):
    """Samples added after the end would overwrite the table that locates the others."""
    pixels = np.zeros((2, 2, 3), np.uint8)
    writer = BetonWriter(tmp_path / "a.beton", 3)
    with pytest.raises(ValueError, match="inside the `with` block"):
        writer.add_raw(pixels)
    with writer:
        writer.add_raw(pixels)
        writer.finish()
        with pytest.raises(ValueError, match="before finish"):
            writer.add_raw(pixels)
    assert len(BetonReader(tmp_path / "a.beton")) == 1
