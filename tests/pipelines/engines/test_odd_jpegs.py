"""Engines against JPEGs that one decoder or the other does not know, and against ones that cost a decoder much."""

import io
import time

import numpy as np
import pytest
import simplejpeg
from PIL import Image
from support.jpegs import many_scans

from pipelines import BetonReader, BetonWriter, ViewSpec, engines
from pipelines.beton import jpeg
from pipelines.errors import CorruptSample
from pipelines.planner import BatchPlanner
from pipelines.views import as_specs

ENGINES = ["native", "native with simplejpeg", "resident", "torchvision", "ffcv", "dali"]


@pytest.fixture(params=ENGINES)
def engine(request, require_package) -> str:
    if request.param in ("ffcv", "dali"):
        require_package({"ffcv": "ffcv", "dali": "nvidia.dali"}[request.param])
    if request.param == "native with simplejpeg":
        request.getfixturevalue("only_simplejpeg")
    return request.param.partition(" ")[0]


def gray_jpeg(level: int, **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((32, 32, 3), level, np.uint8)).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def jpeg_441() -> bytes:
    """Chroma at a quarter of the height: of one gray level, so that the order of the blocks does not matter."""
    jpeg = bytearray(gray_jpeg(90, subsampling=2))
    at = jpeg.find(b"\xff\xc0")
    jpeg[at + 11] = 0x14
    return bytes(jpeg)


def write(path, odd: bytes):
    with BetonWriter(path, 6) as writer:
        for label in range(6):
            writer.add_jpeg(odd if label == 4 else gray_jpeg(90), label)
    return path


def labels_of_an_epoch(path, engine: str) -> list[int]:
    """The labels of an epoch's samples, replacements among them; all of them are of one gray level."""
    with BetonReader(path) as reader:
        planner = BatchPlanner(reader.heights, reader.widths, as_specs(ViewSpec.simclr(32)), 2, seed=0)
        made = engines.ENGINES[engine](reader, planner, num_threads=1, augment=False)
        try:
            batches = []
            for plan, groups in made.run(planner.plans(0, 0), planner):
                batches.append(plan.indices)
                assert all(np.abs(np.asarray(pixels).astype(int) - 90).max() <= 2 for pixels in groups)
        finally:
            made.close()
        return sorted(reader.labels[np.concatenate(batches)].tolist())


def test_4_4_1(tmp_path, engine):
    """Decoded by whatever can: no engine takes it for corrupt, none ends with a traceback."""
    path = write(tmp_path / "odd.beton", jpeg_441())
    with pytest.raises(KeyError):
        simplejpeg.decode_jpeg_header(jpeg_441())
    assert np.abs(BetonReader(path)[4][0].astype(int) - 90).max() <= 2
    assert labels_of_an_epoch(path, engine) == list(range(6))


def test_a_comment_that_looks_like_many_scans(tmp_path, engine):
    """Compiled code takes it for a bomb; the reader, which then looks closer, decodes it."""
    progressive = gray_jpeg(90, progressive=True)
    second = progressive.find(b"\xff\xda", progressive.find(b"\xff\xda") + 2)
    second = progressive.rfind(b"\xff\xc4", 0, second)
    comment = b"\xff\xfe\x04\x02" + b"\xff\xda" * 512
    path = write(tmp_path / "odd.beton", progressive[:second] + comment + progressive[second:])
    with BetonReader(path) as reader:
        assert np.abs(reader.decode(4).astype(int) - 90).max() <= 2
    assert labels_of_an_epoch(path, engine) == list(range(6))


def test_thousands_of_scans(tmp_path, engine):
    """A corrupt sample, told from the markers: it is replaced, or named in an error."""
    path = write(tmp_path / "bomb.beton", many_scans(32, 20_000))
    start = time.process_time()
    with pytest.raises(ValueError, match=r"bomb\.beton: sample 4: .*100 scans"):
        BetonReader(path).decode(4)
    assert time.process_time() - start < 0.5
    if engine in ("ffcv", "dali"):
        with pytest.raises(ValueError, match=r"sample 4: .*100 scans"):
            labels_of_an_epoch(path, engine)
    else:
        with pytest.warns(CorruptSample, match=r"sample 4: .*100 scans"):
            labels = labels_of_an_epoch(path, engine)
        assert 4 not in labels


@pytest.mark.parametrize("engine", ["native with simplejpeg", "resident"], indirect=True)
def test_whatever_a_decoder_raises_is_a_corrupt_sample(tmp_path, engine, monkeypatch):
    odd, decode = gray_jpeg(91), jpeg.decode

    def failing(data, *options):
        if data.tobytes() == odd:
            raise RuntimeError("lost in a table")
        return decode(data, *options)

    monkeypatch.setattr("pipelines.beton.jpeg.decode", failing)
    path = write(tmp_path / "odd.beton", odd)
    with pytest.warns(CorruptSample, match="sample 4: lost in a table"):
        labels = labels_of_an_epoch(path, engine)
    assert 4 not in labels and len(labels) == 6
