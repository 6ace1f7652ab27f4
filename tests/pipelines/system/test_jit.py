"""Compiled functions are kept where this user can write, and a first compilation is announced."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.system.private_folder import private_folder

MODULE = """
from pipelines.system.jit import njit

@njit(cache=True)
def double(number):
    return 2 * number
"""
USE = """
from pipelines.system.jit import announce_compiling, cache_folder
announce_compiling(lambda text: print("said:", text))
from kernels.doubling import double
assert double(21) == 42
print("kept:", cache_folder(double))
print("loaded:", sum(double.stats.cache_hits.values()))
"""
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def run(tmp_path):
    """Run USE in a process that can write neither the package of the function nor the user's home.

    Permissions don't bind root, so it is a file that stands where numba would make a folder.
    """
    package = tmp_path / "kernels"
    package.mkdir()
    (package / "doubling.py").write_text(MODULE)
    (package / "__pycache__").write_text("no folder")
    (tmp_path / "tmp").mkdir()

    def run_it(program: str = USE, **environment: str) -> subprocess.CompletedProcess[str]:
        variables = {key: value for key, value in os.environ.items() if key != "NUMBA_CACHE_DIR"}
        variables |= {"HOME": os.devnull, "XDG_CACHE_HOME": f"{os.devnull}/cache", "PYTHONPATH": f"{ROOT}"}
        variables |= {"TMPDIR": str(tmp_path / "tmp"), **environment}
        return subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=variables,
            timeout=120,
            check=False,
        )

    return run_it


def test_without_a_writable_home_a_private_folder_keeps_it(run, tmp_path):
    first, second = run(), run()
    assert first.returncode == 0, first.stderr
    kept = next(line for line in first.stdout.splitlines() if line.startswith("kept: "))
    folder = Path(kept.removeprefix("kept: "))
    assert folder.is_relative_to(tmp_path / "tmp")
    private = next((tmp_path / "tmp").iterdir())
    assert private.stat().st_mode & 0o777 == 0o700
    assert first.stdout.count("said: compiling for this machine, once") == 1
    assert "loaded: 0" in first.stdout
    # the second process finds it there, and has nothing to say
    assert "loaded: 1" in second.stdout
    assert "said" not in second.stdout


def test_a_library_says_nothing(run):
    done = run("from kernels.doubling import double; assert double(21) == 42")
    assert done.returncode == 0
    assert not done.stdout + done.stderr


def test_without_any_folder_it_compiles_all_the_same(run, tmp_path):
    private = tmp_path / "tmp" / f"fastclr-numba-{os.getuid()}"
    private.write_text("no folder")
    done = run()
    assert done.returncode == 0, done.stderr
    assert "kept: None" in done.stdout
    assert "NUMBA_CACHE_DIR" in done.stdout


def test_the_users_own_folder_comes_first(run, tmp_path):
    done = run(NUMBA_CACHE_DIR=str(tmp_path / "own"))
    assert f"kept: {tmp_path / 'own'}" in done.stdout


def test_other_packages_keep_their_setting(run):
    done = run(USE + "import numba\nprint('setting:', repr(numba.config.CACHE_DIR))")
    assert "setting: ''" in done.stdout


@pytest.mark.parametrize("module", ["pipelines.ops.crop.cpu", "pipelines.ops.augment.cpu_kernels"])
def test_a_disabled_compiler_is_named(run, module):
    done = run(f"import {module}", NUMBA_DISABLE_JIT="1")
    assert done.returncode == 1
    assert "unset NUMBA_DISABLE_JIT" in done.stderr.splitlines()[-1]


def test_a_folder_that_is_not_private_is_refused(tmp_path, monkeypatch):
    """Whoever can write the folder decides which machine code is run."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = private_folder("test")
    assert folder is not None
    assert private_folder("test") == folder
    folder.chmod(0o777)
    assert private_folder("test") is None
    folder.rmdir()
    (tmp_path / "elsewhere").mkdir(0o700)
    folder.symlink_to(tmp_path / "elsewhere")
    assert private_folder("test") is None
    folder.unlink()
    if os.getuid() == 0:
        folder.mkdir(0o700)
        os.chown(folder, 12345, 12345)
        assert private_folder("test") is None


def test_without_a_temporary_directory_there_is_none(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    assert private_folder("test") is None
