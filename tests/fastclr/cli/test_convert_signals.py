"""`fastclr convert` ends cleanly at a signal, whatever it is doing at that moment."""

import os
import resource
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import simplejpeg
from support.jpegs import many_scans

from pipelines.convert.run import file_order

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="signals of POSIX, and /proc"),
]
SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
MOST_S = 2.0
"""Seconds from a signal to the end; of processor time where other programs leave the command little of it."""
BOMB = many_scans(4000, 5000)
"""A JPEG that keeps one call of the decoder busy for minutes, in which no signal is handled."""


@pytest.fixture
def images(tmp_path):
    """A folder of 4,000 images that take some time to encode."""
    folder = tmp_path / "images"
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (400, 400, 3), dtype=np.uint8)
    (folder / "0000.jpg").write_bytes(simplejpeg.encode_jpeg(noise))
    for k in range(1, 4000):
        os.link(folder / "0000.jpg", folder / f"{k:04}.jpg")
    return folder


@pytest.fixture
def out(tmp_path):
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


@pytest.fixture
def convert(out):
    """Start the command; it handles all signals unless `ignored`."""
    started = []

    def start(source, *options, ignored=()):
        def hear():
            # a shell without job control lets what it starts in the background ignore Ctrl-C
            for number in SIGNALS:
                signal.signal(number, signal.SIG_IGN if number in ignored else signal.SIG_DFL)

        command = [sys.executable, "-m", "fastclr.cli.main", "convert", str(source), str(out / "a.beton")]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "preexec_fn": hear}
        started.append(subprocess.Popen([*command, *options], **pipes))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def wait_until(condition, process) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def cpu_seconds(process) -> float:
    with open(f"/proc/{process.pid}/stat") as file:
        user, system = file.read().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def children_seconds() -> float:
    """Processor time of the processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def stop(process, number) -> None:
    """Send a signal; the command ends soon, with one word, and says by its exit code that it was stopped."""
    start, used = time.monotonic(), cpu_seconds(process) + children_seconds()
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    seconds = min(time.monotonic() - start, children_seconds() - used)
    assert process.returncode == 130
    # kernels that no command has compiled yet are announced
    said = [line for line in error.splitlines() if line and "compiling for this machine" not in line]
    assert said == ["fastclr: stopped"]
    assert seconds < MOST_S


@pytest.mark.parametrize("number", SIGNALS)
def test_while_it_writes(images, out, convert, number):
    process = convert(images, "--jpeg", "recompress")
    wait_until(lambda: os.listdir(out), process)
    time.sleep(0.2)
    stop(process, number)
    assert os.listdir(out) == []


@pytest.mark.parametrize("number", SIGNALS)
def test_while_the_comparison_decodes_a_bomb(tmp_path, out, convert, number):
    """All threads are in the decoder, where no signal is handled."""
    folder = tmp_path / "bombs"
    folder.mkdir()
    for k in range(2):
        (folder / f"{k}.jpg").write_bytes(BOMB)
    process = convert(folder, "--max-scans", "1000000", "--workers", "2")
    process.stdout.readline()
    before = cpu_seconds(process)
    wait_until(lambda: cpu_seconds(process) > before + 1, process)
    stop(process, number)
    assert os.listdir(out) == []


def test_while_a_bomb_holds_up_the_writing(images, out, convert):
    """The bomb is none of the images that are compared beforehand."""
    bomb = images / f"{file_order(4000, seed=0)[300]:04}.jpg"
    bomb.unlink()
    bomb.write_bytes(BOMB)
    process = convert(images, "--max-scans", "1000000", "--workers", "1", "--verify", "header")
    wait_until(lambda: os.listdir(out), process)
    before = cpu_seconds(process)
    wait_until(lambda: cpu_seconds(process) > before + 3, process)
    stop(process, signal.SIGINT)
    assert os.listdir(out) == []


def test_nohup(images, out, convert):
    """An ignored SIGHUP stays ignored."""
    process = convert(images, "--jpeg", "recompress", ignored=[signal.SIGHUP])
    wait_until(lambda: os.listdir(out), process)
    process.send_signal(signal.SIGHUP)
    time.sleep(0.2)
    assert process.poll() is None
    stop(process, signal.SIGTERM)
