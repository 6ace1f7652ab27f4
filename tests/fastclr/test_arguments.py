"""A wrong argument is named on stderr, whichever command it was given to, and the exit code is 2."""

import pytest
from support.tiny_run import write_tiny_file

from fastclr.arguments import parse
from fastclr.cli.main import main

WRONG = {
    "train demo --train FILE --train.epohs 3": "--train.epohs",
    "train demo --train FILE --train.epochs 0": "train.epochs",
    "train demo --train FILE --model.width x": "--model.width",
    "train demo --train FILE --views.size 0": "ViewSpec.size",
    "train demo --train FILE --data.engine warp": "--data.engine",
    "train demo FILE --model.encoder vit": "model.encoder",
    "train demo": "FILE.beton",
    "info": "FILE.beton",
    "info FILE more": "more",
    "preview FILE": "--out",
    "preview": "--out",
    "preview --out views.png": "FILE.beton",
    "evaluate run --train FILE": "--test",
    "doctor --jason": "--jason",
    "demo --epochs 3": "--epochs",
    "convert": "SOURCE",
    "convert a b --qualty 5": "--qualty",
    "convert a b --quality x": "--quality",
    "convert a b --jpeg best": "--jpeg",
    "bench loader FILE --rounds x": "--rounds",
    "bench convert": "FOLDER",
    "bench loss --rounds x": "--rounds",
    "bench step --rounds x": "--rounds",
}


@pytest.mark.parametrize("line", WRONG)
def test_a_wrong_argument_is_named(line, tmp_path, capsys):
    file = write_tiny_file(tmp_path / "tiny.beton", 4)
    assert main([str(file) if word == "FILE" else word for word in line.split()]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert WRONG[line] in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("demo --images 19", "images is 19"),
        ("train demo x.beton --train.epochs 0", "train.epochs"),
        ("bench loader x.beton --rounds 0", "rounds"),
    ],
)
def test_a_value_that_a_setting_refuses_is_one_line(line, named, capsys):
    assert main(line.split()) == 2
    err = capsys.readouterr().err
    assert named in err
    assert err.startswith("fastclr ") and err.count("\n") == 1


def test_an_argument_cannot_act_on_the_terminal(capsys):
    """A shell's pattern may find files of any name."""
    assert main(["info", "a.beton", "\x1b[31m\x07.beton"]) == 2
    err = capsys.readouterr().err
    assert "\\x1b[31m\\x07.beton" in err
    assert "\x1b" not in err


def test_help_is_printed(capsys):
    with pytest.raises(SystemExit) as stop:
        parse(int, ["--help"], "prog")
    assert not stop.value.code
    assert "usage: prog" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        main(["info", "--help"])
    assert not stop.value.code
    assert "FILE.beton" in capsys.readouterr().out
