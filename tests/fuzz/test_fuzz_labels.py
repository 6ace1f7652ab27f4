"""Mutated tables of labels and development kits."""

import gzip
from collections import Counter
from pathlib import Path

import pytest
from fuzz.harness import Original, fuzz, main
from support.imagenet_sets import devkit_files, meta_mat, tar_of

from pipelines.convert.devkit import parse_meta, read_devkit
from pipelines.convert.label_files import read_label_file

TABLES = [
    b"file_name,label\na/1.jpg,owl\nb/2.jpg,auk\n",
    b"a/1.jpg\towl\t0\t32\nb/2.jpg\tauk\t1\t2\n",
    b'{"file_name": "a/1.jpg", "label": 3}\n{"file_name": "b/2.jpg", "label": 4}\n',
    b'{"labels": [["a/1.jpg", 3], ["b/2.jpg", 4]]}',
    b"3\n4\n5\n",
]


def run(folder: Path, count: int, seed: int) -> Counter[str]:
    tables = [Original(table) for table in TABLES]
    outcomes = fuzz(tables, read_label_file, folder / "fuzz.jsonl", count, seed)
    outcomes += fuzz(tables, read_label_file, folder / "fuzz.csv", count, seed)

    def parse(path: Path) -> None:
        parse_meta(path.read_bytes(), path.name)

    # scipy has a process of its own for each, of a second
    kits = fuzz([Original(meta_mat())], parse, folder / "fuzz.mat", count // 20, seed, seconds=60)
    return outcomes + kits


@pytest.mark.slow
def test_mutated_tables(tmp_path):
    outcomes = run(tmp_path, 200, seed=0)
    assert outcomes["accepted"] > 50 and outcomes["refused"] > 50


@pytest.mark.slow
def test_mutated_kits(tmp_path):
    """Damage behind the checksum of gzip, which would hide it: the unpacked tar is packed again."""
    kit = tar_of({f"ILSVRC2012_devkit_t12/{name}": data for name, data in devkit_files().items()})
    packed = tmp_path / "packed" / "fuzz.tar.gz"
    packed.parent.mkdir()

    def attempt(path: Path) -> None:
        packed.write_bytes(gzip.compress(path.read_bytes(), 1))
        read_devkit(packed)

    outcomes = fuzz(
        [Original(kit)], attempt, tmp_path / "fuzz.tar", 150, seed=1, refusals=(ValueError, OSError)
    )
    assert outcomes["refused"] > 10


if __name__ == "__main__":
    main("labels", run)
