"""Shards behind URLs: fsspec's memory file system, and a web server of Python's on this machine."""

import functools
import http.server
import sys
import tempfile
import threading
from collections import Counter
from pathlib import Path
from typing import ClassVar

import fsspec
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from support.imagenet_sets import image, tar_of

from fastclr.cli.main import main
from pipelines.convert import convert, open_source, remote
from pipelines.convert.names_file import read_names

NUM_SHARDS, PER_SHARD = 7, 40


def shard(k: int) -> bytes:
    """A tar of WebDataset pairs."""
    files: dict[str, bytes] = {}
    for n in range(PER_SHARD):
        files |= {f"{k}-{n:02}.jpg": image(f"{k}-{n}"), f"{k}-{n:02}.cls": b"%d" % (n % 5)}
    return tar_of(files)


@pytest.fixture
def shards(tmp_path) -> Path:
    folder = tmp_path / "shards"
    folder.mkdir()
    for k in range(NUM_SHARDS):
        (folder / f"train-{k:03}.tar").write_bytes(shard(k))
    return folder


@pytest.fixture
def in_memory(shards):
    """The shards at memory://set/; the temporary files are in a folder of their own."""
    system = fsspec.filesystem("memory")
    for path in shards.iterdir():
        system.pipe(f"/set/{path.name}", path.read_bytes())
    yield "memory://set"
    system.rm("/set", recursive=True)


@pytest.fixture
def temporary(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder with byte ranges; counts requests, and breaks what `faults` names."""

    faults: ClassVar[Counter[str]] = Counter()

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        name = self.path.rpartition("/")[2].partition("?")[0]
        if self.faults[name] > 0:
            self.faults[name] -= 1
            self.send_error(503)
            return
        path = Path(self.translate_path(self.path))
        if "Range" not in self.headers or not path.is_file():
            super().do_GET()
            return
        first, _, last = self.headers["Range"].removeprefix("bytes=").partition("-")
        data = path.read_bytes()
        part = data[int(first) : int(last) + 1 if last else len(data)]
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part)


@pytest.fixture
def served(shards):
    """The address of the shards on a web server."""
    Handler.faults.clear()
    handler = functools.partial(Handler, directory=str(shards))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def converted(source, out: Path) -> tuple[bytes, list[str]]:
    convert(source, out, workers=3)
    return out.read_bytes(), read_names(out)


@pytest.mark.parametrize("pattern", ["train-{000..006}.tar", "train-*.tar", "train-00?.tar", "*[0-9].tar"])
def test_the_same_file_as_from_local_shards(shards, in_memory, temporary, tmp_path, pattern):
    local = converted(open_source([f"{shards}/*.tar"]), tmp_path / "local.beton")
    source = open_source([f"{in_memory}/{pattern}"])
    assert source.name == "train-000.tar and 6 more"
    assert converted(source, tmp_path / "remote.beton") == local
    del source
    assert list(temporary.iterdir()) == []


def test_a_few_shards_at_a_time(shards, in_memory, temporary, tmp_path, monkeypatch):
    """Where nothing is kept, each is downloaded once per pass, ahead of need; few lie on the disk at any time."""
    fetched, most, original = [], [0], remote._fetch_once

    def counting(system, url, path):
        fetched.append(url)
        size = original(system, url, path)
        most[0] = max(most[0], sum(1 for _ in temporary.rglob("*.tar")))
        return size

    monkeypatch.setattr(remote, "_fetch_once", counting)
    monkeypatch.setattr(remote, "DISK_SHARE", 0.0)
    local = converted(open_source([f"{shards}/*.tar"]), tmp_path / "local.beton")
    source = open_source([f"{in_memory}/*.tar"])
    assert source.sequential
    assert Counter(fetched) == {f"memory:///set/train-{k:03}.tar": 1 for k in range(NUM_SHARDS)}
    assert converted(source, tmp_path / "remote.beton") == local
    assert max(Counter(fetched).values()) <= 3
    assert most[0] <= 2 * remote.AHEAD + 2


def test_read_ahead(in_memory, temporary, monkeypatch):
    """While the first shard is held, the next two come without being asked for."""
    files = remote.RemoteFiles([f"{in_memory}/train-{k:03}.tar" for k in range(4)])
    with files.held(files.paths[0]), files._changed:
        assert files._changed.wait_for(lambda: set(files._here) == {0, 1, 2}, timeout=10)
    assert [path.exists() for path in files.paths] == [True, True, True, False]


def test_over_http(shards, served, temporary, tmp_path):
    local = converted(open_source([f"{shards}/*.tar"]), tmp_path / "local.beton")
    out = tmp_path / "remote.beton"
    assert main(["convert", f"{served}/train-{{000..006}}.tar?key=secret", str(out), "--workers", "3"]) == 0
    assert (out.read_bytes(), read_names(out)) == local
    assert "secret" not in (tmp_path / "remote.json").read_text()


def test_a_server_that_fails_sometimes(shards, served, temporary, tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "PAUSE_S", 0.01)
    monkeypatch.setattr(remote, "AHEAD", 0)
    Handler.faults["train-001.tar"] = 1
    assert len(open_source([f"{served}/train-{{000..002}}.tar"]).labels) == 3 * PER_SHARD
    Handler.faults["train-002.tar"] = 1000
    with pytest.raises(OSError, match=r"/train-002\.tar: cannot be read .*503"):
        open_source([f"{served}/train-{{000..002}}.tar"])


def test_parquet(temporary, tmp_path):
    system = fsspec.filesystem("memory")
    images = [image(str(k)) for k in range(60)]
    for k in range(3):
        part = pa.table({"image": images[20 * k : 20 * k + 20], "label": [k] * 20})
        parquet.write_table(part, tmp_path / f"{k}.parquet", row_group_size=6)
        system.pipe(f"/parquet/{k}.parquet", (tmp_path / f"{k}.parquet").read_bytes())
    local = converted(open_source([f"{tmp_path}/*.parquet"]), tmp_path / "local.beton")
    assert converted(open_source(["memory://parquet/*.parquet"]), tmp_path / "remote.beton") == local
    system.rm("/parquet", recursive=True)


def test_a_damaged_shard_is_named_by_its_url(in_memory, temporary, shards):
    system = fsspec.filesystem("memory")
    system.pipe("/set/train-003.tar", shard(3)[:5000])
    with pytest.raises(ValueError, match=r"^memory://set/train-003\.tar: corrupt tar"):
        open_source([f"{in_memory}/train-{{000..006}}.tar"])


def test_a_download_that_ends_early(in_memory, temporary, monkeypatch):
    monkeypatch.setattr(remote, "PAUSE_S", 0.01)
    system = fsspec.filesystem("memory")
    monkeypatch.setattr(system, "info", lambda path: {"size": 10**9}, raising=False)
    with pytest.raises(OSError, match=r"train-000\.tar: [\d,]+ of 1,000,000,000 bytes came"):
        open_source([f"{in_memory}/train-000.tar"])
    assert not list(temporary.rglob("*.tar*"))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("memory://set/gone-{0..1}.tar", "memory://set/gone-0.tar: no such file"),
        ("memory://set/gone-*.tar", "no file has a name of this pattern"),
        ("memory://set/a.zip", "remote sources are tars or Parquet files, got .zip"),
        ("memory://set/folder", "got no suffix"),
        ("nothing://set/a.tar", "nothing.*pip install 'fastclr\\[remote\\]'"),
        ("{served}/gone.tar", "/gone.tar: no such file"),
        ("http://127.0.0.1:9/a.tar", "http://127.0.0.1:9/a.tar: cannot be read"),
    ],
)
def test_what_is_no_remote_source(temporary, served, monkeypatch, source, message):
    monkeypatch.setattr(remote, "PAUSE_S", 0.01)
    with pytest.raises((ValueError, OSError), match=message) as caught:
        open_source([source.replace("{served}", served)])
    assert str(caught.value).isprintable()
    assert list(temporary.iterdir()) == [] or not list(temporary.rglob("*.tar"))


def test_one_line_from_the_command(temporary, tmp_path, capsys):
    assert main(["convert", "memory://set/gone.tar", str(tmp_path / "out.beton")]) == 2
    said = capsys.readouterr().err
    assert (said.count("\n"), "memory://set/gone.tar: no such file" in said) == (1, True)
    assert not list(tmp_path.glob("*out*"))


def test_without_fsspec(monkeypatch):
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    with pytest.raises(ValueError, match=r"needs fsspec .*pip install 'fastclr\[remote\]'"):
        open_source(["s3://bucket/a.tar"])


def test_local_and_remote_ones_are_merged(in_memory, temporary, tmp_path, shards):
    (tmp_path / "cat.tar").write_bytes(tar_of({"cat/1.jpg": image("1"), "dog/2.jpg": image("2")}))
    fsspec.filesystem("memory").pipe(
        "/set/more.tar", tar_of({"cat/3.jpg": image("3"), "eel/4.jpg": image("4")})
    )
    with pytest.raises(ValueError, match="local and remote sources: --merge"):
        open_source([str(tmp_path / "cat.tar"), "memory://set/more.tar"])
    source = open_source([str(tmp_path / "cat.tar"), "memory://set/more.tar"], merge=True)
    assert (source.class_names, source.labels.tolist()) == (["cat", "dog", "eel"], [0, 1, 0, 2])
    assert source.read(3) == image("4")
