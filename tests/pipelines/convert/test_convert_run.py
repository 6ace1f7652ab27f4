import json
import os
import threading

import numpy as np
import pytest
import simplejpeg
from support.jpegs import save

from pipelines.beton import BetonReader, read_sidecar
from pipelines.convert import Encoding, FolderSource, convert, open_source
from pipelines.convert.compare import compare
from pipelines.convert.run import file_order


class Listed:
    """A source from a list, which may hold errors to raise."""

    kind, name, class_names = "list", "a list", None

    def __init__(self, items: list, labels: list[int] | None = None) -> None:
        self.items = items
        self.labels = np.array(labels or [-1] * len(items))

    def item(self, index: int) -> str:
        return f"item {index}"

    def read(self, index: int):
        item = self.items[index]
        if isinstance(item, Exception):
            raise item
        return item


def jpeg(number: int) -> bytes:
    return simplejpeg.encode_jpeg(np.full((8, 8, 3), number, np.uint8))


def test_every_image_arrives_once_with_its_label(tiny_photos, tmp_path):
    source = FolderSource(tiny_photos)
    report = convert(source, tmp_path / "out.beton", workers=2)
    assert (report.found, report.written, report.kept, report.skipped) == (40, 40, 40, {})
    order = file_order(40, seed=0)
    with BetonReader(tmp_path / "out.beton") as reader:
        assert report.file_bytes == reader.file_bytes == (tmp_path / "out.beton").stat().st_size
        assert reader.class_names == source.class_names == [f"class-{k}" for k in range(4)]
        for row, number in enumerate(order):
            assert reader.image_bytes(row).tobytes() == source.read(number), "byte for byte"
            assert reader.labels[row] == source.labels[number]


def test_orders(tiny_photos, tmp_path):
    source = FolderSource(tiny_photos)
    labels = {}
    for name, options in {
        "source": {"order": "source"},
        "shuffled": {},
        "again": {"seed": 0},
        "other": {"seed": 1},
    }.items():
        convert(source, tmp_path / "out.beton", **options)
        labels[name] = BetonReader(tmp_path / "out.beton").labels.tolist()
    assert labels["source"] == sorted(labels["source"])
    assert labels["shuffled"] == labels["again"] != labels["other"]
    assert sorted(labels["shuffled"]) == sorted(labels["other"]) == labels["source"]


GOLDEN_ORDER = [3, 5, 2, 4, 7, 6, 0, 1]


def test_the_shuffle_is_fixed():
    """Files that were written last year and this year agree."""
    assert file_order(8, seed=0).tolist() == GOLDEN_ORDER
    order = file_order(100_000, seed=3)
    assert (np.sort(order) == np.arange(100_000)).all()
    # neighbours in the file are far apart in the source: of two random positions the mean distance is N/3
    assert np.abs(np.diff(order)).mean() == pytest.approx(1e5 / 3, rel=0.02)


@pytest.mark.parametrize(
    "encoding",
    [Encoding(max_side=100), Encoding(jpeg="recompress"), Encoding(mode="raw")],
    ids=["keep", "new", "raw"],
)
def test_the_bytes_do_not_depend_on_the_workers(tiny_photos, tmp_path, encoding):
    source = FolderSource(tiny_photos)
    for workers in (1, 4):
        convert(source, tmp_path / f"{workers}.beton", encoding, workers=workers)
    for suffix in ("beton", "json"):
        assert (tmp_path / f"1.{suffix}").read_bytes() == (tmp_path / f"4.{suffix}").read_bytes()


@pytest.mark.parametrize("encoding", [Encoding(), Encoding(jpeg="recompress")], ids=["keep", "recompress"])
def test_photos(imagenet_photos, tmp_path, encoding):
    source = open_source([str(imagenet_photos)])
    reports = [convert(source, tmp_path / f"{w}.beton", encoding, workers=w) for w in (1, 4)]
    assert (tmp_path / "1.beton").read_bytes() == (tmp_path / "4.beton").read_bytes()
    assert (reports[0].found, reports[0].skipped) == (250, {})
    originals = {source.read(index) for index in range(250)}
    with BetonReader(tmp_path / "4.beton") as reader:
        kept = sum(reader.image_bytes(row).tobytes() in originals for row in range(250))
        assert kept == reports[0].kept
        assert kept == 0 if encoding.jpeg == "recompress" else kept > 150
        assert max(reader.heights.max(), reader.widths.max()) == 500
        for index in range(0, 250, 10):
            reader.decode(index)


def test_raw(tiny_photos, tmp_path):
    source = FolderSource(tiny_photos)
    convert(source, tmp_path / "raw.beton", Encoding(mode="raw"), order="source")
    with BetonReader(tmp_path / "raw.beton") as reader:
        for index in range(40):
            assert not reader.is_jpeg(index)
            np.testing.assert_array_equal(reader[index][0], simplejpeg.decode_jpeg(source.read(index)))


BAD = {
    3: (b"", "the file is empty"),
    10: (b"no image", "no image of a known format"),
    11: (jpeg(0)[:300], "truncated"),
    25: (PermissionError(13, "Permission denied", "/secret/place.jpg"), "Permission denied"),
    39: (KeyError("a bug in a decoder"), "KeyError: 'a bug in a decoder'"),
}


def mixed() -> Listed:
    return Listed([BAD[k][0] if k in BAD else jpeg(k) for k in range(40)], list(range(40)))


@pytest.mark.parametrize("workers", [1, 3])
def test_corrupt_images_are_left_out_and_named(tmp_path, workers):
    """Each with its reason, without paths; the others close up, with their labels."""
    report = convert(mixed(), tmp_path / "out.beton", order="source", workers=workers)
    assert list(report.skipped) == [f"item {k}" for k in BAD]
    for k, (_, reason) in BAD.items():
        assert reason in report.skipped[f"item {k}"].replace("Truncated", "truncated")  # Pillow says either
    assert report.skipped["item 25"] == "Permission denied"
    with BetonReader(tmp_path / "out.beton") as reader:
        assert reader.labels.tolist() == [k for k in range(40) if k not in BAD]
        for row, label in enumerate(reader.labels):
            assert reader.image_bytes(row).tobytes() == jpeg(label)


def test_on_error_stop(tmp_path):
    with pytest.raises(ValueError, match="'item 3': the file is empty"):
        convert(mixed(), tmp_path / "out.beton", order="source", on_error="stop", workers=2)
    assert list(tmp_path.iterdir()) == []


def test_on_error_stop_at_a_progressive_jpeg_that_only_a_lenient_decoder_reads(tmp_path):
    """Encoded anew for its coding alone, it must not hide that some of its pixels may be wrong."""
    whole = save(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8), progressive=True)
    corrupt = whole[: len(whole) // 2] + b"\xff\xd9"
    for encoding in (
        Encoding(),
        Encoding(jpeg="lossless"),
        Encoding(jpeg="recompress"),
        Encoding(mode="raw"),
    ):
        out = {"out": tmp_path / "out.beton", "encoding": encoding, "order": "source"}
        assert convert(Listed([jpeg(0), whole]), on_error="stop", **out).written == 2
        for name in os.listdir(tmp_path):
            (tmp_path / name).unlink()
        with pytest.raises(ValueError, match="'item 1': strict decoding refuses it"):
            convert(Listed([jpeg(0), corrupt, whole]), on_error="stop", **out)
        assert list(tmp_path.iterdir()) == []
        report = convert(Listed([jpeg(0), corrupt, whole]), **out)
        (note,) = [note for note, items in report.re_encoded.items() if "item 1" in items]
        assert "strict decoding refuses it" in note
        for name in os.listdir(tmp_path):
            (tmp_path / name).unlink()


def test_nothing_but_damage(tmp_path):
    with pytest.raises(
        ValueError, match="none of 2 images could be read; the first, 'item 0': the file is empty"
    ):
        convert(Listed([b"", b""]), tmp_path / "out.beton", order="source")
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_leaves_nothing(tmp_path):
    """Ctrl-C in the middle: no file, no side-car, no thread, and what was there stays."""

    def interrupt(done: int) -> None:
        if done == 100:
            raise KeyboardInterrupt

    (tmp_path / "out.beton").write_bytes(b"old")
    threads = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        convert(
            Listed([jpeg(k % 250) for k in range(1000)]),
            tmp_path / "out.beton",
            workers=3,
            progress=interrupt,
        )
    assert threading.active_count() == threads
    assert os.listdir(tmp_path) == ["out.beton"]
    assert (tmp_path / "out.beton").read_bytes() == b"old"


def test_no_room_for_the_side_car_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device", "out.json")

    monkeypatch.setattr("pipelines.convert.run.write_sidecar", full)
    with pytest.raises(OSError, match="No space left"):
        convert(mixed(), tmp_path / "out.beton")
    assert list(tmp_path.iterdir()) == []


def test_few_images_are_in_memory_at_a_time(tmp_path):
    """Reading stays at most (2·workers + 1) chunks of 32 ahead of writing."""
    ahead, read = [], set()

    class Counting(Listed):
        def read(self, index: int):
            read.add(index)
            return super().read(index)

    source = Counting([jpeg(k % 250) for k in range(1500)])
    convert(source, tmp_path / "out.beton", workers=2, progress=lambda done: ahead.append(len(read) - done))
    assert len(ahead) == 1500
    assert max(ahead) <= 5 * 32


def test_the_side_car(tmp_path):
    source = mixed()
    source.items[5] = np.zeros((4, 4, 3), np.uint8)
    source.class_names = [f"class {k}" for k in range(40)]
    convert(source, tmp_path / "out.beton", order="source", seed=7)
    sidecar = json.loads((tmp_path / "out.json").read_text())
    assert sidecar.pop("checksum")
    assert sidecar == read_sidecar(tmp_path / "out.beton")
    assert sidecar["source"] == {"kind": "list", "name": "a list"}
    counts = {"found": 40, "written": 35, "kept": 34, "transcoded": 0, "encoded": 1, "skipped": 5}
    assert sidecar["counts"] == counts
    assert sidecar["re_encoded"] == {"pixels": ["item 5"]}
    assert sidecar["skipped"]["item 3"] == "the file is empty"
    assert sidecar["images_per_class"] == [int(k not in BAD) for k in range(40)]
    assert sidecar["options"]["seed"] == 7
    assert sidecar["options"]["verify"] == "full"
    assert set(sidecar["versions"]) == {"python", "fastclr", "numpy", "simplejpeg", "pillow"}
    assert "/secret" not in json.dumps(sidecar)


def test_compare(tiny_photos):
    rows = {row.name: row for row in compare(FolderSource(tiny_photos), Encoding(quality=20))}
    sizes = [path.stat().st_size for path in tiny_photos.glob("*/*.jpg")]
    assert rows["keep"].mean_bytes == pytest.approx(np.mean(sizes))
    assert rows["recompress"].mean_bytes < 0.6 * rows["keep"].mean_bytes
    assert min(row.images_per_s for row in rows.values()) > 100
    assert compare(Listed([b""]), Encoding()) == []
    corrupt = Listed([jpeg(0)[:300], jpeg(1), b""])
    assert compare(corrupt, Encoding(verify="header"))[0].mean_bytes == len(jpeg(1))
