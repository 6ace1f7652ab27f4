"""What all commands do with the terminal: its encoding, its reader, and the first line of a run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.tiny_run import write_tiny_file

from fastclr.cli.main import COMMANDS, main

ASCII = {
    "PYTHONIOENCODING": {"PYTHONIOENCODING": "ascii"},
    "LC_ALL=C": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
}
FASTCLR = [sys.executable, "-m", "fastclr.cli.main"]


def run(*command: str, shell: bool = False, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        " ".join([*FASTCLR, *command]) if shell else [*FASTCLR, *command],
        shell=shell,
        capture_output=True,
        encoding="utf-8",
        env=os.environ | environment,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def tiny_file(tmp_path_factory) -> Path:
    return write_tiny_file(tmp_path_factory.mktemp("main") / "tiny.beton", 4)


@pytest.mark.parametrize("encoding", ASCII)
def test_a_terminal_of_ascii(tiny_photos, tmp_path, encoding):
    out = tmp_path / "Müsli.beton"
    done = run("convert", str(tiny_photos), str(out), **ASCII[encoding])
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii()
    assert "sli.beton: 40 images" in done.stdout
    done = run("info", str(out), **ASCII[encoding])
    assert done.returncode == 0, done.stderr
    assert "class-0         10  " + "#" * 40 in done.stdout
    assert done.stdout.isascii()


@pytest.mark.parametrize("command", [*COMMANDS, ""])
def test_help_on_a_terminal_of_ascii(command):
    done = run(*command.split(), "--help", PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert "usage: fastclr" in done.stdout
    assert done.stdout.isascii()


@pytest.mark.slow
def test_the_doctor_on_a_terminal_of_ascii():
    done = run("doctor", PYTHONIOENCODING="ascii", COLUMNS="200")
    assert done.returncode == 0, done.stderr
    assert "\\u2713" in done.stdout


def test_an_error_on_a_terminal_of_ascii(tmp_path):
    done = run("info", str(tmp_path / "Müsli.beton"), PYTHONIOENCODING="ascii")
    assert done.returncode == 2
    assert "M\\xfcsli.beton" in done.stderr


@pytest.mark.parametrize("reader", ["| true", "| head -1", ">&-"])
def test_a_reader_that_has_gone(tiny_file, reader):
    done = run("info", str(tiny_file), reader, shell=True)
    assert done.returncode == 0
    assert not done.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs Linux")
def test_an_output_that_is_full(tiny_file):
    done = run("info", str(tiny_file), "> /dev/full", shell=True)
    assert done.returncode == 2
    assert done.stderr == "fastclr info: No space left on device\n"
    done = run("info", "missing.beton", "2> /dev/full", shell=True)
    assert done.returncode == 2


@pytest.mark.slow
def test_the_first_compilation_is_announced(tiny_file, tmp_path):
    """Once, on stderr, and only by the process that compiles."""
    command = ["preview", str(tiny_file), "--out", str(tmp_path / "a.png"), "--size", "32"]
    environment = {"NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    first, second = run(*command, **environment), run(*command, **environment)
    assert first.returncode == second.returncode == 0
    assert first.stderr.startswith("fastclr: compiling for this machine, once")
    assert first.stderr.count("\n") == 1
    assert not second.stderr


@pytest.mark.parametrize("line", ["preview FILE --out a.png", "doctor"])
def test_a_disabled_compiler_is_one_line(tiny_file, tmp_path, line):
    done = run(*line.replace("FILE", str(tiny_file)).split(), NUMBA_DISABLE_JIT="1")
    assert done.returncode == 2
    assert "unset NUMBA_DISABLE_JIT" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_a_user_without_a_home_sees_no_more_than_others(tmp_path):
    """matplotlib, which brings the font, would warn of its cache folder."""
    environment = {"HOME": os.devnull, "XDG_CONFIG_HOME": "", "XDG_CACHE_HOME": "", "TMPDIR": str(tmp_path)}
    done = run("preview", "missing.beton", "--out", "a.png", **environment)
    assert done.returncode == 2
    assert done.stderr.startswith("fastclr preview: No such file")
    assert done.stderr.count("\n") == 1


def test_a_file_is_read_without_the_compiler(tiny_file):
    done = run("info", str(tiny_file), NUMBA_DISABLE_JIT="1")
    assert done.returncode == 0, done.stderr


def test_an_unknown_command(capsys):
    assert main(["unknown"]) == 2
    assert "unknown" in capsys.readouterr().err
    assert main([]) == 2
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"  {command} " in out for command in COMMANDS)
