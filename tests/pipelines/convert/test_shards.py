"""Sets of several files: what is in a shard, and when a set is complete."""

import json
from pathlib import Path

import numpy as np
import pytest

from pipelines.beton import BetonReader
from pipelines.beton.sidecar import SET_FORMAT, read_content
from pipelines.convert import Encoding, FolderSource, convert
from pipelines.convert.shards import (
    ShardedConversion,
    ShardOptions,
    check_names,
    convert_shards,
    report_of,
)


@pytest.fixture
def conversion(tiny_photos, tmp_path) -> ShardedConversion:
    """40 images into 7 shards: of 5 and of 6 images."""
    (tmp_path / "set").mkdir()
    return ShardedConversion(
        FolderSource(tiny_photos), tmp_path / "set" / "a.beton", 7, Encoding(max_side=128)
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_shards_hold_what_one_file_would(conversion, tmp_path):
    assert convert_shards(conversion, keep_complete=False, workers=2) == list(range(7))
    whole = convert(conversion.source, tmp_path / "whole.beton", conversion.encoding)
    with BetonReader(tmp_path / "whole.beton") as one, BetonReader(tmp_path / "set") as several:
        assert np.diff(several.first_samples).tolist() == [5, 6, 6, 5, 6, 6, 6]
        np.testing.assert_array_equal(several.labels, one.labels)
        for index in range(40):
            assert several.image_bytes(index).tobytes() == one.image_bytes(index).tobytes()
        assert several.class_names == one.class_names
        index = several.sidecar
        assert index["fingerprint"] == several.fingerprint
        assert index["file_bytes"] == several.file_bytes
        for name in ("counts", "images_per_class", "options", "source"):
            assert index[name] == one.sidecar[name], name
    report = report_of(conversion.written(shard) for shard in range(7))
    assert (report.found, report.kept, report.encoded) == (whole.found, whole.kept, whole.encoded)
    assert {reason: sorted(names) for reason, names in report.re_encoded.items()} == {
        reason: sorted(names) for reason, names in whole.re_encoded.items()
    }


def test_alone_or_together_in_any_order(conversion, tmp_path):
    """A shard is a function of its number; whoever writes the last one writes the index."""
    convert_shards(conversion, keep_complete=False)
    expected = contents(conversion.out.parent)
    assert len(expected) == 15
    (tmp_path / "other").mkdir()
    alone = ShardedConversion(conversion.source, tmp_path / "other" / "a.beton", 7, conversion.encoding)
    for number, shard in enumerate([3, 6, 0, 2, 5, 4, 1]):
        assert not alone.out.with_suffix(".json").exists()
        assert convert_shards(alone, shard, keep_complete=True, workers=1 + number % 3) == [shard]
        assert len(alone.missing()) == 6 - number
    assert contents(tmp_path / "other") == expected


def damaged_payload(path: Path) -> None:
    """A bit of one of the bytes that the fingerprint takes in."""
    with BetonReader(path) as reader:
        place = int(reader.offsets[0] + reader.sizes[0] // 2)
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    "damage",
    [
        Path.unlink,
        damaged_payload,
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(b""),
        lambda path: path.with_suffix(".json").unlink(),
        lambda path: path.with_suffix(".json").write_text(path.with_suffix(".json").read_text()[:-9]),
    ],
)
def test_resume_writes_what_does_not_verify(conversion, damage):
    convert_shards(conversion, keep_complete=False)
    expected = contents(conversion.out.parent)
    damage(conversion.path(4))
    conversion.out.with_suffix(".json").unlink()
    check_names(conversion, None, resume=True, overwrite=False)
    times = {k: conversion.path(k).stat().st_mtime_ns for k in (0, 6)}
    seen = []
    assert convert_shards(conversion, keep_complete=True, progress=seen.append) == [4]
    assert seen[-1] == 40
    assert seen == sorted(seen)
    assert contents(conversion.out.parent) == expected
    assert times == {k: conversion.path(k).stat().st_mtime_ns for k in (0, 6)}, "these stay"


def test_files_of_another_conversion_are_not_touched(conversion, tiny_photos):
    convert_shards(conversion, keep_complete=False)
    others = {
        r"options: seed 0, here 1": {"seed": 1},
        r"options: max_side 128, here 64": {"encoding": Encoding(max_side=64)},
        r"source: kind 'class folders', here 'flat folder'": {
            "source": FolderSource(tiny_photos / "class-1")
        },
    }
    plan = {"source": conversion.source, "out": conversion.out, "count": 7, "encoding": conversion.encoding}
    for message, change in others.items():
        other = ShardedConversion(**{**plan, **change})
        with pytest.raises(
            ValueError, match=rf"a-00000-of-00007\.beton is of another conversion \({message}"
        ):
            check_names(other, None, resume=True, overwrite=False)
        check_names(other, None, resume=True, overwrite=True)
        assert other.missing() == list(range(7))
    # what only the memory depends on
    same = ShardedConversion(**{**plan, "encoding": Encoding(max_side=128, max_memory_mb=77)})
    check_names(same, None, resume=True, overwrite=False)
    assert same.missing() == []


def test_an_index_is_of_shards_of_one_conversion(conversion):
    convert_shards(conversion, keep_complete=False)
    other = ShardedConversion(conversion.source, conversion.out, 7, conversion.encoding, seed=1)
    for number in range(7):
        assert convert_shards(other, number, keep_complete=False) == [number]
        assert conversion.out.with_suffix(".json").exists() == (number == 6)
    assert read_content(conversion.out.with_suffix(".json"))["options"]["seed"] == 1


def test_what_is_in_the_way(conversion):
    convert_shards(conversion, 2, keep_complete=False)
    with pytest.raises(FileExistsError, match=r"a-00002-of-00007\.beton exists; --resume"):
        check_names(conversion, None, resume=False, overwrite=False)
    check_names(conversion, 3, resume=False, overwrite=False)
    conversion.out.write_bytes(b"")
    with pytest.raises(FileExistsError, match=r"a\.beton exists, and a set"):
        check_names(conversion, 3, resume=True, overwrite=True)
    conversion.out.unlink()
    conversion.out.with_suffix(".json").write_text(json.dumps({"mine": 1}))
    with pytest.raises(FileExistsError, match=r"a\.json exists and is not a side-car"):
        check_names(conversion, 3, resume=True, overwrite=True)


def test_options_that_do_not_fit():
    for options, message in [
        ({"shard": 3}, "--shard is for sets"),
        ({"resume": True}, "--resume is for sets"),
        ({"shards": 0}, "--shards must be 1 to 99,999, got 0"),
        ({"shards": 4, "shard": 4}, "--shard must be 0 to 3 of 4 shards, got 4"),
    ]:
        with pytest.raises(ValueError, match=message):
            ShardOptions(**options)


def test_fewer_images_than_shards(tiny_photos, tmp_path):
    with pytest.raises(ValueError, match=r"40 images do not fill 41 shards"):
        ShardedConversion(FolderSource(tiny_photos), tmp_path / "a.beton", 41, Encoding())


def test_one_shard_is_a_set_of_one(tiny_photos, tmp_path):
    conversion = ShardedConversion(FolderSource(tiny_photos), tmp_path / "a.beton", 1, Encoding())
    convert_shards(conversion, keep_complete=False)
    assert read_content(tmp_path / "a.json")["format"] == SET_FORMAT
    with BetonReader(tmp_path / "a.beton") as reader:
        assert reader.files == (tmp_path / "a-00000-of-00001.beton",)
        assert len(reader) == 40
