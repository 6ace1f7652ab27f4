"""Files appear whole or not at all, and what killed processes leave goes with the next run."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.system import atomic_file
from pipelines.system.atomic_file import replacing, write_at

WRITER = """
import sys
from pathlib import Path
from pipelines.system.atomic_file import replacing, write_at
with replacing(Path(sys.argv[1])) as file:
    write_at(file, b"half", 0, Path(sys.argv[1]))
    print("ready", flush=True)
    sys.stdin.read()
"""


def start_writer(path: Path) -> subprocess.Popen:
    """A process that has written half of `path` and waits until its stdin is closed."""
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None
    assert writer.stdout.readline() == "ready\n"
    return writer


def write(path: Path, data: bytes) -> None:
    with replacing(path) as file:
        write_at(file, data, 0, path)


def test_a_file_appears_whole(tmp_path):
    path = tmp_path / "file"
    with replacing(path) as file:
        write_at(file, b"new", 0, path)
        assert not path.exists()
    assert path.read_bytes() == b"new"

    def interrupted() -> None:
        with replacing(path) as file:
            write_at(file, b"half", 0, path)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["file"]


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path):
    path, neighbour = tmp_path / "file", tmp_path / ".file.but-not-ours.partial"
    neighbour.write_bytes(b"x")
    writer = start_writer(path)
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    assert len(os.listdir(tmp_path)) == 2
    write(path, b"new")
    assert sorted(os.listdir(tmp_path)) == [neighbour.name, "file"]
    assert path.read_bytes() == b"new"


def test_a_second_writer_of_one_name_says_so(tmp_path):
    path = tmp_path / "file"
    writer = start_writer(path)
    with pytest.raises(OSError, match="file: another process is writing it"):
        write(path, b"second")
    write(tmp_path / "other", b"free")
    writer.communicate("")
    assert writer.returncode == 0
    assert path.read_bytes() == b"half", "the first has not been disturbed"
    write(path, b"third")
    assert sorted(os.listdir(tmp_path)) == ["file", "other"]


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    """Everything is written as before; nothing is removed that might be another writer's."""

    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(atomic_file.fcntl, "flock", no_locks)
    left = tmp_path / ".file.00000000.partial"
    left.write_bytes(b"x")
    write(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"new"
    assert left.exists()
