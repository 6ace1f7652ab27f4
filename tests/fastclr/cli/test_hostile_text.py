"""Names and texts from files are escaped wherever a command prints them."""

import io
import json
import os
import tarfile
import warnings

import numpy as np
import pytest
from support.tiny_run import write_tiny_file

from fastclr import doctor
from fastclr.cli.main import main
from fastclr.speeds import drawn_jpeg
from pipelines.beton import BetonReader, BetonWriter, sidecar_path
from pipelines.beton.layout import FIELD_DESCRIPTOR, HEADER
from pipelines.beton.sidecar import FORMAT
from pipelines.errors import CorruptSample

HOSTILE = "\x1b]0;owned\x07\x1b[31m\u202ered[bold]\r\n\x9b2J"
"""Sets the terminal's title and color, turns the writing direction, opens markup, breaks the line, clears."""


def said(capsys) -> str:
    """What was printed; nothing of it may act on a terminal."""
    out, err = capsys.readouterr()
    acting = {letter for letter in out + err if not letter.isprintable() and letter != "\n"}
    assert not acting, (acting, out, err)
    return out + err


def hostile_beton(path, types=(2, 1), names=(HOSTILE, HOSTILE[5:])):
    """A file whose labels have ten digits and whose fields and classes have hostile names."""
    with BetonWriter(path, 3) as writer:
        for label in (-1, 0, 9_999_999_999):
            writer.add_jpeg(drawn_jpeg(), label)
    content = bytearray(path.read_bytes())
    fields = np.frombuffer(content, np.uint8)[HEADER.itemsize :][: 2 * FIELD_DESCRIPTOR.itemsize]
    fields = fields.view(FIELD_DESCRIPTOR)
    fields["type_id"] = types
    fields["name"] = [name.encode("utf-8", "surrogateescape")[:16] for name in names]
    path.write_bytes(content)
    texts = {"kind": HOSTILE, "name": [HOSTILE], HOSTILE: {"deep": HOSTILE}}
    sidecar = {
        "format": FORMAT,
        "file_bytes": len(content),
        "class_names": [HOSTILE, HOSTILE],
        "source": texts,
        "versions": texts,
        "re_encoded": {HOSTILE: [HOSTILE]},
        "skipped": {HOSTILE: HOSTILE},
    }
    sidecar_path(path).write_text(json.dumps(sidecar))
    return path


def test_info(tmp_path, capsys):
    assert main(["info", str(hostile_beton(tmp_path / f"{HOSTILE}.beton"))]) == 0
    printed = said(capsys)
    assert "\\x1b]0;owned" in printed
    assert printed.count("\\x1b[31m\\u202ered[bold]") >= 5
    assert "9999999999" in printed


def test_preview(tmp_path, capsys):
    file, out = hostile_beton(tmp_path / "a.beton"), tmp_path / f"{HOSTILE}.png"
    assert main(["preview", str(file), "--out", str(out), "--size", "32"]) == 0
    assert "\\x1b]0;owned" in said(capsys)
    assert out.exists()


def test_doctor(tmp_path, capsys, monkeypatch):
    for part in ("_machine", "_packages", "_engines", "_kernels"):
        monkeypatch.setattr(doctor, part, list)
    file = hostile_beton(tmp_path / f"{HOSTILE}.beton")
    for options in ([], ["--json"]):
        assert main(["doctor", "--file", str(file), *options]) == 0
        assert "owned" in said(capsys)


def test_convert_a_folder(tmp_path, capsys):
    """A lone class folder, junk that is passed over, an image that is left out."""
    source = tmp_path / HOSTILE
    classes = source / HOSTILE
    classes.mkdir(parents=True)
    (classes / f"{HOSTILE}.jpg").write_bytes(drawn_jpeg())
    (classes / f"corrupt {HOSTILE}.jpg").write_bytes(drawn_jpeg()[:3000])
    (classes / f"junk.{HOSTILE}").touch()
    assert main(["convert", str(source), str(tmp_path / f"out {HOSTILE}.beton")]) == 0
    assert "owned" in said(capsys)
    assert main(["convert", str(source), str(tmp_path / "out.beton"), "--on-error", "stop"]) == 2
    assert "owned" in said(capsys)


@pytest.mark.parametrize("whole", [True, False])
def test_convert_a_tar(tmp_path, capsys, whole):
    path = tmp_path / f"{HOSTILE}.tar"
    with tarfile.open(path, "w") as tar:
        for name, data in ((f"{HOSTILE}.jpg", drawn_jpeg()), (f"{HOSTILE}.cls", HOSTILE.encode())):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    if not whole:
        path.write_bytes(path.read_bytes()[:40_000])
    main(["convert", str(path), str(tmp_path / "out.beton")])
    assert "owned" in said(capsys)


NOT_READ = (
    "info FILE",
    "info MISSING",
    "preview FILE --out a.png",
    "preview GOOD --out HOSTILE",
    "preview GOOD --out MISSING/a.png",
    "preview GOOD --out a.png --recipe HOSTILE",
    "doctor --file FILE",
    "convert MISSING out.beton",
    "convert MISSING HOSTILE",
    "convert GOOD MISSING/out.beton",
    "train HOSTILE --train GOOD",
    "train RECIPE --train GOOD --out run",
    "train demo --train FILE --out run --train.device cpu",
    "evaluate MISSING --train GOOD --test GOOD",
    "evaluate FILE --train GOOD --test GOOD",
    "bench HOSTILE",
    "bench loader MISSING",
    "bench loader FILE",
    "bench convert MISSING",
    "demo --data MISSING",
    "HOSTILE",
    "info GOOD HOSTILE",
    "info --HOSTILE",
)


@pytest.mark.parametrize("line", NOT_READ)
def test_errors(line, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkdir("evil")
    (tmp_path / "evil" / HOSTILE).write_text(f"neither this nor that: {HOSTILE}")
    (tmp_path / "recipe.toml").write_text(f'[{json.dumps(HOSTILE)}]\nx = "{json.dumps(HOSTILE)[1:-1]}"\n')
    write_tiny_file(tmp_path / "good.beton", 4)
    words = {
        "FILE": f"evil/{HOSTILE}",
        "MISSING": f"evil/missing {HOSTILE}",
        "GOOD": "good.beton",
        "RECIPE": "recipe.toml",
    }
    argv = [words.get(word, word) for word in line.split()]
    argv = [word.replace("MISSING", words["MISSING"]).replace("HOSTILE", HOSTILE) for word in argv]
    assert main(argv) == 2
    printed = said(capsys)
    assert "owned" in printed
    assert "this is a bug" not in printed


def test_an_unforeseen_error(capsys, monkeypatch):
    """A traceback carries the exceptions' texts."""
    from fastclr.cli import info

    def broken(argv):
        raise KeyError(HOSTILE) from RuntimeError(HOSTILE)

    monkeypatch.setattr(info, "main", broken)
    assert main(["info", "a.beton"]) == 1
    printed = said(capsys)
    assert "this is a bug" in printed
    assert printed.count("\\x1b]0;owned") == 2


@pytest.mark.parametrize("category", [CorruptSample, UserWarning])
def test_a_warning(capsys, monkeypatch, category):
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    main(["info", "missing.beton"])  # a command sets how warnings look
    capsys.readouterr()
    print(warnings.formatwarning(HOSTILE, category, "a.py", 1, HOSTILE))
    assert "\\x1b]0;owned" in said(capsys)


@pytest.mark.parametrize("types", [(2, 0), (2, 255)])
def test_foreign_fields(tmp_path, capsys, types):
    """FFCV's float labels are dropped, and info says so; a type that a user defined has no known size."""
    file = hostile_beton(tmp_path / "a.beton", types, ("photo", HOSTILE))
    code = main(["info", str(file)])
    printed = said(capsys)
    assert "owned" in printed
    if types[1] == 0:
        assert code == 0
        assert "dropped" in printed
        assert "photo (image, read as image)" in printed
        assert "(float, not read)" in printed
        assert (BetonReader(file).labels == -1).all()
    else:
        assert code == 2
