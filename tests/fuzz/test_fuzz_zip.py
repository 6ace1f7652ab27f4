"""Mutated zips, opened and read."""

import io
import zipfile
from collections import Counter
from pathlib import Path

from fuzz.harness import Original, fuzz, main
from support.sources import read_all

from pipelines.convert import open_source


def make_zip(method: int) -> Original:
    """Fields are the tables of contents and the headers, where lengths and places are."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name in ("a/1.jpg", "b/2.jpg", "b/deep/3.png", "notes.txt"):
            archive.writestr(name, name.encode() * 200)
        start = archive.start_dir
    data = buffer.getvalue()
    headers = [at for at in range(start) if data[at : at + 4] == b"PK\x03\x04"]
    fields = [(at, 4) for at in range(start, len(data) - 4, 2)] + [(at + 4, 26) for at in headers]
    return Original(data, fields)


def read(path: Path) -> None:
    source = open_source([str(path)])
    read_all(source, ValueError, OSError)


def run(folder: Path, count: int, seed: int) -> Counter[str]:
    originals = [make_zip(zipfile.ZIP_STORED), make_zip(zipfile.ZIP_DEFLATED)]
    return fuzz(originals, read, folder / "fuzz.zip", count, seed)


def test_mutated_zips(tmp_path):
    outcomes = run(tmp_path, 300, seed=0)
    assert outcomes["accepted"] > 10 and outcomes["refused"] > 50


if __name__ == "__main__":
    main("zip", run)
