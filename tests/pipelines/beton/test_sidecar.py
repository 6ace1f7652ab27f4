import json

import numpy as np
import pytest

from pipelines.beton import BetonReader, BetonWriter, read_sidecar, sidecar_path
from pipelines.beton.sidecar import CHECKSUM, FORMAT, check_sidecar_path, write_sidecar


@pytest.fixture
def beton(tmp_path):
    with BetonWriter(tmp_path / "set.one.beton", 1) as writer:
        writer.add_raw(np.zeros((2, 2, 3), np.uint8), label=1)
    return tmp_path / "set.one.beton"


def content(beton, **more):
    return {"format": FORMAT, "file_bytes": beton.stat().st_size, "class_names": ["cat", "dög\n"], **more}


def test_it_comes_back(beton):
    assert read_sidecar(beton) is None
    assert BetonReader(beton).class_names is None
    write_sidecar(beton, content(beton))
    assert sidecar_path(beton).name == "set.one.json"
    assert read_sidecar(beton) == content(beton)
    assert BetonReader(beton).class_names == ["cat", "dög\n"]


def test_json_without_our_format_is_ignored(beton):
    for other in ({"class_names": ["x"]}, ["x"], content(beton) | {"format": "other"}, "x"):
        sidecar_path(beton).write_text(json.dumps(other))
        assert read_sidecar(beton) is None


def test_a_side_car_of_an_older_file_is_ignored(beton):
    """The file was overwritten by one with other classes."""
    write_sidecar(beton, content(beton))
    with BetonWriter(beton, 2) as writer:
        for label in (0, 1):
            writer.add_raw(np.zeros((2, 2, 3), np.uint8), label)
    assert read_sidecar(beton) is None
    assert BetonReader(beton).class_names is None


def test_a_side_car_of_another_file_of_equal_length_is_ignored(tmp_path, beton):
    """Pages are filled up to 8 MiB, so lengths are easily the same."""
    ours = BetonReader(beton).fingerprint
    write_sidecar(beton, content(beton, fingerprint=ours))
    assert BetonReader(beton).sidecar == content(beton, fingerprint=ours)
    length = beton.stat().st_size
    with BetonWriter(beton, 1) as writer:
        writer.add_raw(np.zeros((3, 3, 3), np.uint8), label=0)
    assert beton.stat().st_size == length
    assert BetonReader(beton).class_names is None
    assert writer.fingerprint == BetonReader(beton).fingerprint != ours


def test_invalid_json_is_named(beton):
    sidecar_path(beton).write_bytes(b'{"format": "fastclr side-car 1", \xff')
    with pytest.raises(ValueError, match=r"set\.one\.json: no valid JSON .*delete it"):
        read_sidecar(beton)
    assert len(BetonReader(beton)) == 1, "the images open all the same"


def test_it_is_found_through_links(tmp_path, beton):
    write_sidecar(beton, content(beton))
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "elsewhere" / "train.beton"
    link.symlink_to(beton)
    (tmp_path / "elsewhere" / "again.beton").symlink_to("train.beton")
    for path in (link, tmp_path / "elsewhere" / "again.beton"):
        assert BetonReader(path).class_names == ["cat", "dög\n"]


def test_it_is_written_beside_a_link(tmp_path, beton):
    """BetonWriter replaces a link, so the side-car goes beside the link; the link's target keeps its own."""
    write_sidecar(beton, content(beton))
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "elsewhere" / "train.beton"
    link.symlink_to(beton)
    write_sidecar(link, content(beton, class_names=["beside", "it"]))
    assert BetonReader(link).class_names == ["beside", "it"]
    assert BetonReader(beton).class_names == ["cat", "dög\n"]


FOREIGN = {
    "JSON lines": b'{"epoch": 1}\n{"epoch": 2}\n',
    "other JSON": b'{"format": "COCO"}',
    "no JSON": b"\xff\xfe",
    "empty": b"",
    "nested": b"[" * 100_000,
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_file_that_is_no_side_car_is_neither_read_nor_overwritten(beton, kind):
    path = sidecar_path(beton)
    path.write_bytes(FOREIGN[kind])
    assert read_sidecar(beton) is None
    for attempt in (lambda: check_sidecar_path(beton), lambda: write_sidecar(beton, content(beton))):
        with pytest.raises(FileExistsError, match=r"set\.one\.json"):
            attempt()
    assert path.read_bytes() == FOREIGN[kind]


def test_a_corrupt_or_sorted_side_car_is_ours(beton):
    for text in ('{"format": "fastclr side-car 1", ', json.dumps({"a": 1, "format": FORMAT})):
        sidecar_path(beton).write_text(text)
        write_sidecar(beton, content(beton))
        assert read_sidecar(beton) == content(beton)


def test_the_checksum_finds_a_changed_class_name(beton):
    write_sidecar(beton, content(beton, options={"seed": 1e300, "lone": "\udcff"}))
    path = sidecar_path(beton)
    text = path.read_text()
    path.write_text(json.dumps(dict(reversed(json.loads(text).items()))))
    assert read_sidecar(beton) is not None, "another order and white space are the same content"
    path.write_text(text.replace("cat", "bat"))
    with pytest.raises(ValueError, match=r"set\.one\.json.*checksum"):
        read_sidecar(beton)
    edited = json.loads(path.read_text())
    del edited[CHECKSUM]
    path.write_text(json.dumps(edited))
    assert read_sidecar(beton)["class_names"] == ["bat", "dög\n"], "as those of version 0.1, without one"


@pytest.mark.parametrize("value", ["[" * 100_000, "9" * 5000, "nul"])
def test_hostile_values_are_one_line(beton, value):
    sidecar_path(beton).write_text('{"format": "fastclr side-car 1", "file_bytes": ' + value)
    with pytest.raises(ValueError, match=r"set\.one\.json") as caught:
        read_sidecar(beton)
    assert "\n" not in str(caught.value)
