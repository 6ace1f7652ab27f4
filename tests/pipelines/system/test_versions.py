"""Versions, commit and processor: of packages and checkouts made for the test."""

import subprocess

import torch

from pipelines.system import versions
from pipelines.system.versions import (
    git_commit,
    package_version,
    package_versions,
    processor_name,
    vector_extension,
)


def test_versions_of_installed_packages_only():
    assert package_version("torch") == torch.__version__.partition("+")[0]
    assert package_versions("torch", "no-such-package").keys() == {"torch"}


def test_the_commit_of_a_tracked_file(tmp_path):
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=x", "-c", "user.email=x@example.com"]
        command = ["git", *identity, "-C", str(tmp_path), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    file, other = tmp_path / "a.py", tmp_path / "b.py"
    file.write_text("1\n")
    assert git_commit(file) is None  # no checkout
    git("init", "-q")
    git("add", "a.py")
    assert git_commit(file) is None  # no commit
    git("commit", "-q", "-m", "x")
    found = git_commit(file)
    assert found is not None and (found.hash, found.changed) == (git("rev-parse", "HEAD"), False)
    other.write_text("2\n")
    assert git_commit(other) is None  # not tracked, as an installed package below a checkout is not
    assert git_commit(file) == found
    file.write_text("3\n")
    changed = git_commit(file)
    assert changed is not None and changed.changed


def test_the_processor(monkeypatch):
    text = {"model name": "Z80", "flags": "fpu avx2 sse"}
    monkeypatch.setattr(versions, "_cpuinfo", lambda: text)
    assert (processor_name(), vector_extension()) == ("Z80", "avx2")
    text["flags"] += " avx512bw"
    assert vector_extension() == "avx512bw"
    monkeypatch.setattr(versions, "_cpuinfo", dict)
    assert processor_name() and vector_extension() == ""
