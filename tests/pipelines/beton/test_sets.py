"""Several files read as one data set, and which files are meant."""

import gc
import json
import os
import pickle
import re
from pathlib import Path

import numpy as np
import pytest

from pipelines.beton import BetonReader, BetonWriter, mapping
from pipelines.beton.layout import FIELD_DESCRIPTOR, HEADER
from pipelines.beton.sets import find_files, index_path, shard_path
from pipelines.beton.sidecar import FORMAT, SET_FORMAT, write_sidecar
from tests.pipelines.conftest import draw_jpeg

METADATA = HEADER.itemsize + 2 * FIELD_DESCRIPTOR.itemsize
SAMPLES = (3, 5, 4)
"""Of the files of the set."""


def write_file(path: Path, first: int, count: int, class_names: list[str] | None = None) -> BetonWriter:
    """JPEGs of sizes of their own, and raw pixels in each third sample; labels are the numbers in the set."""
    with BetonWriter(path, count) as writer:
        for number in range(first, first + count):
            rng = np.random.default_rng(number)
            if number % 3 == 2:
                writer.add_raw(rng.integers(0, 256, (number + 3, 7, 3), np.uint8), number)
            else:
                writer.add_jpeg(draw_jpeg(rng, 20 + number, 30), number)
    if class_names is not None:
        content = {"file_bytes": writer.file_bytes, "fingerprint": writer.fingerprint}
        write_sidecar(path, {"format": FORMAT, **content, "class_names": class_names})
    return writer


@pytest.fixture
def shards(tmp_path) -> list[Path]:
    """Three shards of 12 images."""
    paths = [shard_path(tmp_path / "set.beton", k, len(SAMPLES)) for k in range(len(SAMPLES))]
    for path, first, count in zip(paths, np.cumsum([0, *SAMPLES]).tolist(), SAMPLES, strict=False):
        write_file(path, first, count)
    return paths


def write_index(files: list[Path], **changes) -> Path:
    with BetonReader(files) as reader:
        content = {"format": SET_FORMAT, "fingerprint": reader.fingerprint}
    said = [{"name": shard.name, "file_bytes": shard.stat().st_size} for shard in files]
    out = files[0].with_name("set.beton")
    write_sidecar(out, {**content, "shards": said, "class_names": list("abc"), **changes})
    return out.with_suffix(".json")


def assert_is_the_set(reader: BetonReader, whole: Path) -> None:
    """The reader's samples are those of the same images in one file."""
    with BetonReader(whole) as one:
        assert len(reader) == len(one) == sum(SAMPLES)
        for name in ("heights", "widths", "labels", "modes", "sizes"):
            np.testing.assert_array_equal(getattr(reader, name), getattr(one, name))
            assert getattr(reader, name).dtype == getattr(one, name).dtype
        for index in range(len(one)):
            np.testing.assert_array_equal(reader[index][0], one[index][0])
            stored = reader.image_bytes(index)
            assert stored.tobytes() == one.image_bytes(index).tobytes()
            begin, size = int(reader.offsets[index]), int(reader.sizes[index])
            assert stored.tobytes() == reader.data[begin : begin + size].tobytes(), "one address space"


@pytest.fixture
def whole(tmp_path) -> Path:
    (tmp_path / "whole").mkdir()
    path = tmp_path / "whole" / "whole.beton"
    write_file(path, 0, sum(SAMPLES))
    return path


def test_all_ways_to_name_a_set(shards, whole, tmp_path, monkeypatch):
    folder = tmp_path / "shards"
    folder.mkdir()
    moved = [shard.rename(folder / shard.name) for shard in shards]
    index = write_index(moved)
    monkeypatch.chdir(tmp_path)
    ways = [
        moved,
        [f"{path}" for path in moved],
        folder,
        f"{folder}/set-*.beton",
        Path("shards/set-*-of-?????.beton"),
    ]
    ways += [index, folder / "set.beton"]
    prints = set()
    for way in ways:
        with BetonReader(way) as reader:
            assert [path.absolute() for path in reader.files] == moved
            assert reader.first_samples.tolist() == [0, 3, 8, 12]
            assert reader.file_bytes == sum(path.stat().st_size for path in moved)
            assert_is_the_set(reader, whole)
            prints.add(reader.fingerprint)
            assert reader.class_names == list("abc")
            assert reader.sidecar["format"] == SET_FORMAT
    assert len(prints) == 1


def test_names_in_messages(shards, tmp_path):
    with BetonReader(tmp_path / "set-*.beton") as reader:
        assert reader.path == tmp_path / "set-*.beton"
        assert reader.where(7) == f"{shards[1]}: sample 4 (sample 7 of the set)"
        assert reader.where(8) == f"{shards[2]}: sample 0 (sample 8 of the set)"
    with BetonReader(shards) as reader:
        assert reader.path == Path(f"{shards[0]} and 2 more")
    with BetonReader(shards[1:2]) as reader:
        assert (reader.path, reader.where(2)) == (shards[1], f"{shards[1]}: sample 2")


def test_fingerprint_of_a_set(shards):
    with BetonReader(shards[0]) as one, BetonReader([shards[0]]) as listed:
        assert one.fingerprint == listed.fingerprint
    prints = [BetonReader(some).fingerprint for some in (shards, shards[::-1], shards[:2], shards[0])]
    assert len(set(prints)) == 4
    assert all(re.fullmatch("v2_[0-9a-f]{16}", found) for found in prints)
    reader = BetonReader(shards)
    assert reader.matches_fingerprint(prints[0])
    for other in (prints[1], None, "", 0):
        assert not reader.matches_fingerprint(other)


def test_pickled_it_opens_the_files_again(shards, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with BetonReader("set-*.beton") as reader:
        stored = pickle.dumps(reader)
        monkeypatch.chdir("/")
        twin = pickle.loads(stored)
        assert (twin.path, twin.fingerprint) == (reader.path, reader.fingerprint)
        np.testing.assert_array_equal(twin[9][0], reader[9][0])


@pytest.mark.parametrize("max_descriptors", [256, 2])
@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="looks into /proc")
def test_nothing_stays_mapped_or_open(shards, monkeypatch, max_descriptors):
    """The second case is a set of more files than stay open."""
    monkeypatch.setattr(mapping, "MAX_DESCRIPTORS", max_descriptors)
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))

    def mapped() -> int:
        return Path("/proc/self/maps").read_text().count("set-0000")

    reader = BetonReader(shards)
    assert mapped() == 3
    reader.will_need(np.array([0, 11, 4]))
    stored = reader.image_bytes(11)
    copy = stored.tobytes()
    reader.close()
    with pytest.raises(ValueError, match="closed"):
        reader.will_need(np.array([0]))
    assert mapped() == 3, "what was handed out outlives the reader"
    assert stored.tobytes() == copy
    del stored, reader
    gc.collect()
    assert mapped() == 0
    shards[2].write_bytes(shards[2].read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"set-00002-of-00003\.beton: cut short"):
        BetonReader(shards)
    shards[1].write_bytes(b"")
    with pytest.raises(ValueError, match=r"set-00001-of-00003\.beton: no \.beton file"):
        BetonReader(shards)
    gc.collect()
    assert mapped() == 0
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="the system can't be told")
def test_will_need_tells_each_file_its_part(shards, monkeypatch):
    told = []
    monkeypatch.setattr(
        "os.posix_fadvise", lambda fd, *what: told.append((os.readlink(f"/proc/self/fd/{fd}"), *what))
    )
    with BetonReader(shards) as reader:
        reader.will_need(np.array([11, 0, 4]))
    wanted = []
    for file, sample in ((2, 3), (0, 0), (1, 1)):
        with BetonReader(shards[file]) as one:
            wanted.append((f"{shards[file]}", one.offsets[sample], one.sizes[sample], os.POSIX_FADV_WILLNEED))
    assert told == wanted


def test_errors_of_a_file_name_it_and_its_own_sample(shards):
    """Hostile files are checked one by one: no offset of one leads into another."""
    with BetonReader(shards[1]) as reader:
        offset, size = int(reader.offsets[3]), int(reader.sizes[3])
        end = reader.file_bytes
    data = bytearray(shards[1].read_bytes())
    data[offset : offset + size] = bytes(size)
    shards[1].write_bytes(data)
    named = pytest.raises(ValueError, match=r"set-00001-.*: sample 3 \(sample 6 of the set\)")
    with BetonReader(shards) as reader, named:
        reader.decode(6)
    # the entry of sample 3 in the allocation table: a place in the next file
    entry = end - (SAMPLES[1] - 3) * 24
    data[entry + 8 : entry + 16] = (end + 8192).to_bytes(8, "little")
    shards[1].write_bytes(data)
    with pytest.raises(ValueError, match=r"set-00001-of-00003.beton: sample 3: .* outside the data"):
        BetonReader(shards)


def test_missing_shards_are_named(shards, tmp_path):
    index = write_index(shards)
    shards[1].unlink()
    for way in (index, tmp_path / "set.beton", tmp_path / "*.beton", tmp_path):
        with pytest.raises(
            ValueError, match=r"1 of 3 shards are missing: set-00001-of-00003.beton; .*--resume"
        ):
            BetonReader(way)
    with BetonReader([shards[0], shards[2]]) as reader:
        assert reader.labels.tolist() == [0, 1, 2, 8, 9, 10, 11], "those of a list are wanted so"
    with pytest.raises(FileNotFoundError):
        BetonReader(shards)


def test_an_index_of_other_files(shards):
    index = write_index(shards)
    write_file(shards[2], 8, 3)
    with pytest.raises(ValueError, match=r"set-00002-of-00003.beton has \d+ bytes, and \d+ by set.json"):
        BetonReader(index)
    with BetonReader(shards) as reader:
        assert reader.sidecar is None
        assert reader.class_names is None
    write_index(shards, fingerprint="v2_0000000000000000")
    with BetonReader(shards) as reader:
        assert reader.sidecar is None


@pytest.mark.parametrize(
    "said", [None, [], {}, ["x"], [{"name": "../set-00000-of-00001.beton", "file_bytes": 1}], [{"name": 3}]]
)
def test_an_index_that_was_edited(shards, said):
    index = write_index(shards, shards=said)
    with pytest.raises(ValueError, match=r"set\.json: its key 'shards'"):
        BetonReader(index)
    with BetonReader(shards) as reader:
        assert reader.sidecar is None


def test_a_json_file_that_is_no_index(shards, tmp_path):
    (tmp_path / "other.json").write_text(json.dumps({"format": "something"}))
    with pytest.raises(ValueError, match=r"other\.json is not the index"):
        BetonReader(tmp_path / "other.json")
    with pytest.raises(ValueError, match=r"missing\.json is not the index"):
        BetonReader(tmp_path / "missing.json")
    with pytest.raises(FileNotFoundError):
        BetonReader(tmp_path / "other.beton")


def test_folders_and_patterns_that_mean_nothing(shards, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(IsADirectoryError):
        BetonReader(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match=r"x-\*\.beton: no \.beton file has such a name$"):
        BetonReader(tmp_path / "x-*.beton")
    write_index(shards)
    with pytest.raises(FileNotFoundError, match=r"only others: set\.json"):
        BetonReader(tmp_path / "set*.js*")
    write_file(tmp_path / "val.beton", 0, 2)
    with pytest.raises(ValueError, match=r"holds files of several sets: .*val\.beton"):
        BetonReader(tmp_path)
    with pytest.raises(ValueError, match="empty list"):
        BetonReader([])
    with pytest.raises(ValueError, match=r"set-00000-of-00003\.beton is given twice"):
        BetonReader([shards[0], shards[1], shards[0]])


def test_a_folder_of_numbered_files(tmp_path):
    for number in (10, 2):
        write_file(tmp_path / f"part{number}.beton", number, 1)
    assert BetonReader(tmp_path).labels.tolist() == [10, 2], "in the order of their names"


def test_a_file_whose_name_looks_like_a_pattern(tmp_path):
    write_file(tmp_path / "a[1].beton", 0, 2)
    assert len(BetonReader(tmp_path / "a[1].beton")) == 2


def test_class_names_must_agree(shards):
    """Names of the shards without side-cars are not known; those of a file written anew do not count."""
    write_file(shards[0], 0, 3, ["cat", "dog"])
    write_file(shards[2], 8, 4, ["cat", "dog"])
    with BetonReader(shards) as reader:
        assert reader.class_names == ["cat", "dog"]
    write_file(shards[2], 8, 4, ["dog", "cat"])
    with pytest.raises(ValueError, match=r"set-00002-of-00003.beton: its class_names .* set-00000"):
        BetonReader(shards)
    # the file is another one by now, of the same length
    data = bytearray(shards[2].read_bytes())
    data[METADATA + 16] ^= 1
    shards[2].write_bytes(data)
    with BetonReader(shards) as reader:
        assert reader.class_names == ["cat", "dog"]


def test_where_an_index_is(tmp_path):
    names = [tmp_path / f"a-0000{k}-of-00003.beton" for k in range(3)]
    assert index_path(names) == tmp_path / "a.json"
    for other in (
        names[:2],
        names[::-1],
        [*names[:2], tmp_path / "b-00002-of-00003.beton"],
        [tmp_path / "x.beton"],
    ):
        assert index_path(other) is None
    assert find_files(names[0]).files == (names[0],)
