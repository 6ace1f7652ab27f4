"""A file larger than memory, at a small size: the group's limit holds, and what is read is counted."""

import json
import sys

import pytest

from benchmarks.core import memory_limit
from benchmarks.core.memory_limit import join, limited_group
from benchmarks.core.process import WorkFailed, call_in_process
from benchmarks.loaders.larger_than_memory import COLD, LIMITED, main
from pipelines.convert import FolderSource, convert

linux = pytest.mark.skipif(sys.platform != "linux", reason="control groups are Linux's")


@pytest.fixture(scope="module")
def photos(tiny_photos, tmp_path_factory):
    out = tmp_path_factory.mktemp("memory") / "photos.beton"
    convert(FolderSource(tiny_photos), out)
    return out


def allocate(group, num_bytes: int) -> int:
    join(group)
    return len(bytearray(num_bytes))


@linux
def test_the_limit_holds():
    try:
        with limited_group(200 << 20) as group:
            assert call_in_process(allocate, group, 50 << 20, timeout_s=60) == 50 << 20
            with pytest.raises(WorkFailed, match="died"):
                call_in_process(allocate, group, 400 << 20, timeout_s=60)
    except OSError as error:
        pytest.skip(str(error))
    assert not group.exists()


@linux
@pytest.mark.slow
@pytest.mark.parametrize("possible", [True, False])
def test_both_orders(photos, tmp_path, capsys, monkeypatch, possible):
    out = tmp_path / "memory.json"
    if not possible:
        monkeypatch.setattr(memory_limit, "groups", lambda controller: iter([tmp_path / "missing"]))
    command = [f"{photos}", "--repeat-to-mb", "2", "--memory-mb", "1500", "--seconds", "1", "--size", "16"]
    main([*command, "--batch-size", "8", "--threads", "1", "--out", f"{out}"])
    report = json.loads(out.read_text())
    if possible and report["not_measured"]:
        pytest.skip(report["not_measured"])
    assert report["conditions"] == (LIMITED if possible else COLD)
    assert report["memory_bytes"] == (1_500_000_000 if possible else 0)
    assert ("not measured" in capsys.readouterr().out) is not possible
    assert [row["order"] for row in report["rows"]] == ["random", "blocks"]
    assert all(row["images"] > 0 and row["images_per_s"] > 0 for row in report["rows"])
    # no more than the whole file, read once: it fits into this limit
    assert all(
        row["read_bytes_per_image"] * row["images"] <= 1.1 * report["file_bytes"] for row in report["rows"]
    )
