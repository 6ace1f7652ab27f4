import json

import numpy as np
import pytest

from fastclr.cli.main import main
from pipelines.beton import BetonReader, BetonWriter
from pipelines.convert import Encoding, FolderSource, convert


def test_a_converted_file(tiny_photos, tmp_path, capsys):
    convert(FolderSource(tiny_photos), tmp_path / "tiny.beton", Encoding(max_side=128))
    assert main(["info", str(tmp_path / "tiny.beton")]) == 0
    printed = capsys.readouterr().out
    assert "tiny.beton: 40 images (40 JPEG, 0 raw)" in printed
    assert "labels: 4 classes of 10 to 10 images" in printed
    for k in range(4):
        assert f"  class-{k}         10  " + "█" * 40 in printed
    assert f"source     kind class folders, name {tiny_photos.name}" in printed
    assert "jpeg keep, mode jpg, max_side 128" in printed
    assert "× longer side over 128 pixels" in printed


def test_the_histogram_of_sizes(tmp_path, capsys):
    """Half octaves of the longer side; empty ones in between are shown."""
    with BetonWriter(tmp_path / "sizes.beton", 7) as writer:
        for shape in ((1, 1), (45, 7), (7, 45), (45, 45), (46, 1), (63, 3), (200, 100)):
            writer.add_raw(np.zeros((*shape, 3), np.uint8))
    assert main(["info", str(tmp_path / "sizes.beton")]) == 0
    printed = capsys.readouterr().out
    assert "largest image 200×100" in printed
    rows = [line.split() for line in printed.splitlines() if " to " in line and line[2].isdigit()]
    counts = {f"{row[0]}-{row[2]}": int(row[3]) for row in rows}
    assert counts["32-45"] == 3
    assert counts["46-63"] == 2
    assert counts["64-90"] == 0
    assert counts["182-255"] == 1
    assert ["1", "1"] in [line.split()[:2] for line in printed.splitlines()]
    assert "labels: none" in printed
    assert "no side-car" in printed


def test_many_classes_and_unknown_labels(tmp_path, capsys):
    with BetonWriter(tmp_path / "many.beton", 50) as writer:
        for label in [-1, -1, 2**62, *range(30), *[7] * 10]:
            writer.add_raw(np.zeros((2, 2, 3), np.uint8), label)
    assert main(["info", str(tmp_path / "many.beton")]) == 0
    printed = capsys.readouterr().out
    assert "labels: 31 classes of 1 to 11 images, 2 images without label" in printed
    assert "… and 21 more" in printed


def test_a_side_car_that_was_edited(tiny_photos, tmp_path, capsys):
    """It may hold anything; terminal codes in a name are not carried out."""
    convert(FolderSource(tiny_photos), tmp_path / "a.beton")
    content = json.loads((tmp_path / "a.json").read_text())
    # with it an edit is damage
    del content["checksum"]
    content |= {
        "class_names": ["\x1b[31mred", 5, None],
        "counts": 3,
        "skipped": {"\x1b.jpg": [1]},
        "re_encoded": {"x": 2},
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    assert main(["info", str(tmp_path / "a.beton")]) == 0
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert "\\x1b[31mred" in printed


@pytest.mark.parametrize(
    ("name", "message"),
    [("missing.beton", "No such file"), ("text.beton", "no .beton file"), ("cut.beton", "truncated")],
)
def test_what_is_no_file_is_one_line(tiny_photos, tmp_path, capsys, name, message):
    (tmp_path / "text.beton").write_text("words, words, words, and nothing but words")
    convert(FolderSource(tiny_photos), tmp_path / "whole.beton")
    (tmp_path / "cut.beton").write_bytes((tmp_path / "whole.beton").read_bytes()[:2500])
    assert main(["info", str(tmp_path / name)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("fastclr info: ")
    assert message in error
    assert name in error
    assert error.count("\n") == 1


def test_verify_names_every_corrupt_sample(tiny_photos, tmp_path, capsys):
    out = tmp_path / "x.beton"
    convert(FolderSource(tiny_photos), out, Encoding(jpeg="recompress", max_side=128))
    assert main(["info", "--verify", str(out)]) == 0
    assert "40 images decoded, none corrupt" in capsys.readouterr().out
    with BetonReader(out) as reader:
        ends = (reader.offsets + reader.sizes).astype(int)
    data = bytearray(out.read_bytes())
    for sample in (7, 39):
        data[ends[sample] - 60 : ends[sample] - 30] = bytes(range(30))
    out.write_bytes(data)
    # no crop of the first rows would meet the damage
    assert main(["info", "--verify", str(out)]) == 1
    first, second, last = capsys.readouterr().out.splitlines()
    assert "sample 7:" in first and "sample 39:" in second
    assert "40 images decoded, 2 corrupt" in last


def test_raw_samples_are_verified_too(tmp_path, capsys):
    with BetonWriter(tmp_path / "raw.beton", 20) as writer:
        for _ in range(20):
            writer.add_raw(np.zeros((9, 8, 3), np.uint8))
    assert main(["info", str(tmp_path / "raw.beton"), "--verify"]) == 0
    assert "20 images decoded, none corrupt" in capsys.readouterr().out
