"""Mutated Parquet files, opened and read."""

import io
import json
from collections import Counter
from pathlib import Path

import pytest
from fuzz.harness import Original, fuzz, main
from support.sources import read_all

from pipelines.convert import open_source

NAMES = ["auk", "owl"]
FOOTER = 8
"""Bytes behind the metadata: their length, and "PAR1"."""


def make_parquet(text_labels: bool, compression: str) -> Original:
    """Three row groups of images with paths and labels; fields are the footer, and the headers of pages."""
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [{"bytes": f"image {k} ".encode() * 20, "path": f"{k}.jpg"} for k in range(9)]
    labels = [NAMES[k % 2] for k in range(9)] if text_labels else [k % 2 for k in range(9)]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"image": pa.array(rows, kind), "label": labels})
    if not text_labels:
        features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": NAMES}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    buffer = io.BytesIO()
    parquet.write_table(table, buffer, row_group_size=3, compression=compression)
    data = buffer.getvalue()
    length = int.from_bytes(data[-FOOTER:-4], "little")
    footer = len(data) - FOOTER - length
    content = parquet.ParquetFile(io.BytesIO(data)).metadata
    columns = [
        content.row_group(k).column(c)
        for k in range(content.num_row_groups)
        for c in range(content.num_columns)
    ]
    pages = [column.data_page_offset for column in columns]
    pages += [column.dictionary_page_offset for column in columns if column.has_dictionary_page]
    fields = [(at, 4) for at in range(footer, len(data) - 4, 2)]
    # as many places in the headers of pages as in the footer
    return Original(data, fields + [(at + k, 2) for at in pages for k in range(0, 24, 2)] * 3)


def read(path: Path) -> None:
    source = open_source([str(path)])
    assert len(source.labels) < 1000
    read_all(source, ValueError, OSError)


def run(folder: Path, count: int, seed: int) -> Counter[str]:
    originals = [make_parquet(False, "snappy"), make_parquet(True, "none")]
    return fuzz(originals, read, folder / "fuzz.parquet", count, seed)


def test_mutated_parquet(tmp_path):
    outcomes = run(tmp_path, 200, seed=0)
    assert outcomes["accepted"] > 10 and outcomes["refused"] > 50


if __name__ == "__main__":
    main("parquet", run)
