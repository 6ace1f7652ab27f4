"""What happens to stdout does not end a command."""

import io
import os
import subprocess
import sys

import pytest

from pipelines.system.output import LenientOutput, lenient_output, say


def test_what_can_be_written_is(capsys):
    with lenient_output():
        print("out")
        print("err", file=sys.stderr)
    assert capsys.readouterr() == ("out\n", "err\n")


def test_a_reader_that_is_gone():
    """The first failure shows at a flush; nothing fails later, when the buffer is flushed once more."""
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as pipe:
        stream = LenientOutput(pipe)
        stream.write("text")
        assert not stream.failed
        stream.flush()
        assert stream.failed
        stream.write("more")
        assert not stream.isatty()
    # closing the pipe flushed what was in it


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
def test_a_full_disk():
    with open("/dev/full", "w") as full:
        stream = LenientOutput(full)
        stream.write("text")
        stream.flush()
        assert stream.failed


def test_text_that_does_not_fit_the_encoding_is_no_lost_reader():
    stream = LenientOutput(io.TextIOWrapper(io.BytesIO(), "ascii"))
    with pytest.raises(UnicodeEncodeError):
        stream.write("ü")


def test_say_prints_a_line_unless_there_is_no_stdout(monkeypatch, capsys):
    say("heard")
    with monkeypatch.context() as without:
        without.setattr(sys, "stdout", None)
        say("dropped")
    say("heard again")
    assert capsys.readouterr() == ("heard\nheard again\n", "")


WORKS_ON = """
import os, sys
from pipelines.system.output import lenient_output
with lenient_output():
    print("x" * 100_000)
    print("y", file=sys.stderr)
    os.write(1, b"z")
    with open(sys.argv[1], "w") as file:
        file.write(f"done {file.fileno()}")
"""


@pytest.mark.parametrize("redirection", [">&-", "2>&-", ">&- 2>&-", ">/dev/full", "| true", "2>&1 | true"])
def test_a_process_ends_well_without_its_output(tmp_path, redirection):
    script = tmp_path / "script.py"
    script.write_text(WORKS_ON)
    line = f'set -o pipefail; "{sys.executable}" {script} {tmp_path}/result {redirection}'
    done = subprocess.run(["bash", "-c", line], timeout=60)
    assert done.returncode == 0
    word, descriptor = (tmp_path / "result").read_text().split()
    assert word == "done"
    assert int(descriptor) > 2, "a file took the number of stdout"
