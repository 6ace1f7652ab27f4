"""What is wrong with an argument is said in one line, whichever command it was given to."""

import pytest
from support.tiny_run import write_tiny_file

from fastclr.arguments import call, parse
from fastclr.cli.main import main

WRONG = {
    "train demo --train FILE --train.epohs 3": "options: --train.epohs, 3; Perhaps you meant: --train.epochs",
    "train demo --train FILE --optim.base-rl 1": "--optim.base-lr",
    "train demo --train FILE --train.epochs 0": "train.epochs is 0; it must be at least 1; see fastclr train --help",
    "train demo --train FILE --model.width x": "could not convert string to float",
    "train demo --train FILE --views.size 0": "ViewSpec.size is 0; it must be between 1 and 4096 pixels",
    "train demo": "--train",
    "info": "FILE.beton",
    "info FILE more": "more",
    "preview FILE": "fastclr preview: missing --out PATH; see fastclr preview --help\n",
    "preview": "missing FILE.beton, --out PATH; see",
    "evaluate run --train FILE": "--test",
    "doctor --jason": "--jason",
    "demo --epochs 3": "--epochs",
    "convert": "SOURCE",
    "convert a b --quality x": "--quality",
    "convert a b --jpeg lossless": "lossless",
    "bench loader FILE --rounds x": "--rounds",
    "bench convert": "missing FOLDER; see",
    "bench verdict demo --train FILE --stepps 3": "--stepps",
    "bench loss --rounds x": "--rounds",
    "bench optimizer --rounds x": "--rounds",
    "bench augment --rounds x": "--rounds",
    "bench step --rounds x": "--rounds",
}


@pytest.mark.parametrize("line", WRONG)
def test_one_line(line, tmp_path, capsys):
    file = write_tiny_file(tmp_path / "tiny.beton", 4)
    assert main([str(file) if word == "FILE" else word for word in line.split()]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith(f"fastclr {line.split()[0]}: ")
    assert err.count("\n") == 1
    assert WRONG[line] in err
    assert not set(err) & set("╭│─╰\x1b")


def test_help_is_left_alone(capsys):
    with pytest.raises(SystemExit) as stop:
        parse(int, ["--help"], "prog")
    assert not stop.value.code
    assert "usage: prog" in capsys.readouterr().out


def test_the_function_speaks_for_itself(capsys):
    import sys

    def command(number: int) -> int:
        print("to stderr", file=sys.stderr)
        if number < 0:
            raise ValueError("its own error")
        return number + 1

    assert call(command, ["--number", "2"], "prog") == 3
    assert capsys.readouterr().err == "to stderr\n"
    with pytest.raises(ValueError, match=r"^its own error$"):
        call(command, ["--number", "-1"], "prog")
