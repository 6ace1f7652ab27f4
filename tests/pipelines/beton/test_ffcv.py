"""Both directions with the real `ffcv` package: it reads our files, we read its files."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import simplejpeg

from pipelines.beton import BetonReader, BetonWriter

SCRIPTS = Path(__file__).with_name("ffcv_scripts.py")


@pytest.fixture(scope="module")
def run_ffcv(require_package):
    require_package("ffcv")

    def run(*arguments) -> None:
        command = [sys.executable, str(SCRIPTS), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr

    return run


@pytest.fixture(scope="module")
def ffcv_files(run_ffcv, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("ffcv")
    run_ffcv("write", folder)
    return folder


@pytest.fixture(scope="module")
def drawn(run_ffcv):
    spec = importlib.util.spec_from_file_location("ffcv_scripts", SCRIPTS)
    scripts = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(scripts)
    return scripts.Drawn()


@pytest.mark.parametrize("mode", ["jpg", "raw", "smart", "proportion"])
def test_we_read_ffcvs_files(ffcv_files, drawn, mode):
    """The file's other fields are ignored; of its two int fields the one named "label" is the label."""
    import cv2  # comes with ffcv

    with BetonReader(ffcv_files / f"{mode}.beton") as reader:
        assert len(reader) == len(drawn)
        num_jpegs = sum(reader.is_jpeg(index) for index in range(len(reader)))
        # "smart" stores as JPEG what is larger than its threshold; "proportion" throws a coin
        expected = {"jpg": {60}, "raw": {0}, "smart": {sum(drawn[k][2].nbytes > 9000 for k in range(60))}}
        assert num_jpegs in expected.get(mode, set(range(10, 51)))
        for index in range(len(reader)):
            pixels, label = reader[index]
            truth = drawn[index][2]
            assert label == index - 1
            assert pixels.shape == truth.shape
            if not reader.is_jpeg(index):
                np.testing.assert_array_equal(pixels, truth)
            else:  # the very file that FFCV's encoder made
                _, jpeg = cv2.imencode(".jpg", truth[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])
                assert reader.image_bytes(index).tobytes() == jpeg.tobytes()
                np.testing.assert_array_equal(pixels, simplejpeg.decode_jpeg(jpeg))


def images_of_one_size(rng: np.random.Generator, count: int) -> list[np.ndarray]:
    """Noise at 96×80: a page of 8 MiB holds some six hundred of them, stored as JPEG at quality 100."""
    return list(rng.integers(0, 256, (count, 96, 80, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def our_file(tmp_path_factory) -> Path:
    """Color and gray JPEGs and raw pixels, on several pages, one announced sample missing."""
    path, rng = tmp_path_factory.mktemp("ours") / "ours.beton", np.random.default_rng(0)
    with BetonWriter(path, num_samples=1001) as writer:
        for index, pixels in enumerate(images_of_one_size(rng, 1000)):
            label = index % 11 - 1
            if index % 5 == 1:
                writer.add_raw(pixels, label)
            elif index % 5 == 2:
                writer.add_jpeg(simplejpeg.encode_jpeg(pixels[:, :, :1].copy(), 90, "GRAY", "Gray"), label)
            else:
                writer.add_jpeg(simplejpeg.encode_jpeg(pixels, 100, colorsubsampling="444"), label)
    return path


def test_ffcv_reads_our_files(our_file, run_ffcv, tmp_path):
    """Pixel for pixel, through both of its memory managers; it decodes with the fast inverse DCT."""
    run_ffcv("read", our_file, tmp_path / "found.npz", "os", "process")
    found = np.load(tmp_path / "found.npz")
    with BetonReader(our_file) as reader:
        assert found["fields"].tolist() == ["image", "label"]
        assert reader.file_bytes > 3 * reader.page_size, "the file is to have several pages"
        np.testing.assert_array_equal(found["table"]["ptr"], reader.offsets)
        np.testing.assert_array_equal(found["table"]["size"], reader.sizes)
        ours = np.stack([reader.decode(index, fast_dct=True) for index in range(len(reader))])
        for manager in ("os", "process"):
            np.testing.assert_array_equal(found[f"images_{manager}"], ours)
            np.testing.assert_array_equal(found[f"labels_{manager}"], reader.labels)


def test_ffcv_reads_a_conversion_of_photos(photo_beton, run_ffcv, tmp_path):
    """Its Reader finds every photo; the pixels need one size, and so a file of their own."""
    with BetonReader(photo_beton) as reader:
        shape = reader.heights * 1000 + reader.widths
        values, counts = np.unique(shape, return_counts=True)
        alike = np.flatnonzero(shape == values[counts.argmax()])
        assert len(alike) >= 20
        with BetonWriter(tmp_path / "alike.beton", len(alike)) as writer:
            for index in alike:
                writer.add_jpeg(reader.image_bytes(index).tobytes(), int(reader.labels[index]))
        run_ffcv("read", tmp_path / "alike.beton", tmp_path / "found.npz", "os")
        found = np.load(tmp_path / "found.npz")
        for row, index in enumerate(alike):
            np.testing.assert_array_equal(found["images_os"][row], reader.decode(index, fast_dct=True))
            assert found["labels_os"][row] == reader.labels[index]
