"""Mutated `.beton` files: each is opened and read, or refused in one line that names it."""

from collections import Counter
from pathlib import Path

import numpy as np
import simplejpeg
from fuzz.harness import Original, fuzz, main

from pipelines.beton import BetonReader, BetonWriter
from pipelines.beton.layout import FIELD_DESCRIPTOR, HEADER

NUM_SAMPLES = 4


def original(folder: Path, mode: str) -> Original:
    """A small file; mutations hit its header, its descriptors' types, its metadata and its allocation table."""
    rng = np.random.default_rng(0)
    with BetonWriter(folder / "original.beton", NUM_SAMPLES) as writer:
        for label in range(NUM_SAMPLES):
            pixels = rng.integers(0, 256, (9 + label, 12, 3), dtype=np.uint8)
            if mode == "raw":
                writer.add_raw(pixels, label)
            else:
                writer.add_jpeg(simplejpeg.encode_jpeg(pixels), label)
    # pages are 8 MiB; the payloads of a small file are at the start of one, and the table behind it
    data = (folder / "original.beton").read_bytes()
    with BetonReader(folder / "original.beton") as reader:
        payloads = list(zip(reader.offsets.tolist(), reader.sizes.tolist(), strict=True))
    metadata = HEADER.itemsize + 2 * FIELD_DESCRIPTOR.itemsize
    fields = [(0, 2), (2, 2), (4, 4), (8, 8), (16, 8), (24, 1), (24 + FIELD_DESCRIPTOR.itemsize, 1)]
    fields += [(metadata + step, 8) for step in range(0, 24 * NUM_SAMPLES, 4)]
    fields += [(len(data) - step, 8) for step in range(8, 24 * NUM_SAMPLES + 1, 8)]
    fields += [(start + step, 4) for start, size in payloads for step in range(0, min(size, 200), 20)]
    return Original(data, fields)


def read(path: Path) -> None:
    """Everything that a user may ask of a file."""
    with BetonReader(path) as reader:
        _ = reader.fingerprint, reader.class_names, reader.num_classes
        for index in range(min(len(reader), 8)):
            reader.decode(index)


def run(folder: Path, count: int, seed: int) -> Counter[str]:
    originals = [original(folder, mode) for mode in ("jpg", "raw")]
    return fuzz(originals, read, folder / "mutated.beton", count, seed)


def test_mutated_betons(tmp_path):
    outcomes = run(tmp_path, 200, seed=0)
    assert outcomes["refused"] > 50
    assert outcomes["accepted"] > 5


if __name__ == "__main__":
    main("beton", run)
