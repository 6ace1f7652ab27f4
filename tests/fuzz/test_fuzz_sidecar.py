"""Mutated side-cars: each is read, ignored, or refused in one line that names it."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
from fuzz.harness import Original, fuzz, main

from pipelines.beton import BetonReader, BetonWriter
from pipelines.beton.sidecar import FORMAT, write_sidecar


def run(folder: Path, count: int, seed: int) -> Counter[str]:
    beton = folder / "set.beton"
    with BetonWriter(beton, 1) as writer:
        writer.add_raw(np.zeros((2, 2, 3), np.uint8), label=0)
    content = {
        "format": FORMAT,
        "file_bytes": writer.file_bytes,
        "fingerprint": writer.fingerprint,
        "class_names": ["cat", "dög"],
        "options": {"seed": 7, "quality": 90.5, "mode": None},
        "skipped": {"a.jpg": "the file is empty"},
    }
    write_sidecar(beton, content)
    path = folder / "set.json"
    data = path.read_bytes()
    old = json.dumps(content, indent=1).encode()  # as version 0.1 wrote it, without a checksum
    originals = [Original(whole, [(k, 4) for k in range(0, len(whole), 6)]) for whole in (data, old)]

    def read(_: Path) -> None:
        with BetonReader(beton) as reader:
            found, names = reader.sidecar, reader.class_names
        has_checksum = b'"checksum"' in path.read_bytes()
        assert not has_checksum or found in (None, content), "changed content was accepted"
        assert names is None or all(isinstance(name, str) for name in names)

    return fuzz(originals, read, path, count, seed)


def test_mutated_sidecars(tmp_path):
    outcomes = run(tmp_path, 200, seed=0)
    assert outcomes["refused"] > 30
    assert outcomes["accepted"] > 30


if __name__ == "__main__":
    main("side-car", run)
