"""The run folder: what counts as a run, who may write to it, and what a killed one leaves behind."""

import errno
import fcntl
import threading
import time

import pytest

from fastclr.train import run
from fastclr.train.checkpoint import STATE_KEYS, load_checkpoint, save_checkpoint
from fastclr.train.run import RunLock, new_run, saved_run


@pytest.fixture(autouse=True)
def _short_patience(monkeypatch):
    monkeypatch.setattr(run, "LOCK_TIMEOUT_S", 0.2)


@pytest.fixture
def folder(tmp_path):
    """A run of 3 steps, whose checkpoint was written at 1000 seconds."""
    state = dict.fromkeys(STATE_KEYS, 0) | {"step": 3, "time": 1000.0}
    save_checkpoint(tmp_path / "last.pt", state)
    (tmp_path / "metrics.jsonl").write_text('{"step": 3}\n')
    return tmp_path


def test_a_running_run_is_locked(folder):
    with RunLock() as ours:
        assert saved_run(folder, ours)["step"] == 3
        with RunLock() as theirs, pytest.raises(FileExistsError, match="another process is training there"):
            saved_run(folder, theirs)
    with RunLock() as theirs:  # it has ended
        assert saved_run(folder, theirs)["step"] == 3


def test_a_run_that_is_just_ending_is_waited_for(folder, monkeypatch):
    monkeypatch.setattr(run, "LOCK_TIMEOUT_S", 20.0)
    with RunLock() as ours:
        ours.take(folder)
        threading.Timer(0.3, lambda: ours.__exit__()).start()
        start = time.monotonic()
        with RunLock() as theirs:
            theirs.take(folder)
        assert 0.2 < time.monotonic() - start < 10


def test_two_runs_that_begin_together(tmp_path):
    """The second one finds out when it makes its folder, and leaves the first one's files alone."""
    folder = tmp_path / "run"
    with RunLock() as ours, RunLock() as theirs:
        for lock in (ours, theirs):
            assert saved_run(folder, lock) is None
        with new_run(folder, ours):
            (folder / "config.toml").touch()
        with (
            pytest.raises(FileExistsError, match="another process is training there"),
            new_run(folder, theirs),
        ):
            pytest.fail("it was let in")
        assert (folder / "config.toml").exists()
        assert (folder / "metrics.jsonl").exists()


def test_a_run_that_fails_at_its_beginning_leaves_nothing(tmp_path):
    folder = tmp_path / "run"
    with RunLock() as lock, pytest.raises(FileNotFoundError), new_run(folder, lock):
        (folder / "config.toml").write_bytes((folder / "nothing").read_bytes())
    assert not (tmp_path / "run").exists()


def test_killed_before_its_first_checkpoint(tmp_path):
    """The lock's file is the first of all, so its absence tells a user's own config.toml from a run's."""
    (tmp_path / "config.toml").touch()
    with RunLock() as lock:
        with pytest.raises(FileExistsError, match=r"holds config.toml but no last.pt"):
            saved_run(tmp_path, lock)
        (tmp_path / "metrics.jsonl").touch()
        assert saved_run(tmp_path, lock) is None
        with RunLock() as other, pytest.raises(FileExistsError, match="another process"):
            saved_run(tmp_path, other)
        with pytest.raises(FileNotFoundError, match=r"holds no last.pt to resume; leave out --resume"):
            saved_run(tmp_path, lock, resume=True)


def test_what_was_being_written_is_removed(folder):
    for name in (".last.pt.0a1b.partial", ".encoder.safetensors.77.partial", ".mine.partial"):
        (folder / name).touch()
    with RunLock() as lock:
        lock.take(folder)
    assert sorted(path.name for path in folder.glob(".*")) == [".mine.partial"]


def test_fresh_and_resume(folder, tmp_path):
    with RunLock() as lock:
        with pytest.raises(FileExistsError, match="--fresh"):
            saved_run(folder, lock, fresh=True)
        assert saved_run(folder, lock, resume=True)["step"] == 3
    with RunLock() as lock:
        assert saved_run(tmp_path / "new", lock, fresh=True) is None
        with pytest.raises(FileNotFoundError, match="--resume"):
            saved_run(tmp_path / "new", lock, resume=True)


def test_records_without_a_checkpoint(folder):
    (folder / "last.pt").unlink()
    with RunLock() as lock, pytest.raises(FileExistsError, match=r"metrics.jsonl but no last.pt"):
        saved_run(folder, lock)


def test_a_file_system_without_locks(folder, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    (folder / ".last.pt.0a1b.partial").touch()  # that of a run which may be alive
    with RunLock() as ours, RunLock() as theirs:
        for lock in (ours, theirs):
            assert saved_run(folder, lock) == load_checkpoint(folder / "last.pt")
    assert (folder / ".last.pt.0a1b.partial").exists()
