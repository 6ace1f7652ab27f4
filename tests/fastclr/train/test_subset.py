"""Which images are learnt from: a class-balanced fraction, or a list of names."""

import numpy as np
import pytest
from PIL import Image

from fastclr.train.subset import balanced_fraction, listed_samples
from pipelines import BetonReader
from pipelines.convert.names_file import read_names
from pipelines.convert.run import convert
from pipelines.convert.sources import open_source


def test_every_class_gets_as_many():
    labels = np.repeat([0, 1, 2], [500, 300, 200])
    chosen = balanced_fraction(labels, 0.1, 0, "file")
    assert np.bincount(labels[chosen]).tolist() == [33, 33, 33]
    assert (np.diff(chosen) > 0).all()


def test_a_small_class_gives_all_it_has():
    labels = np.repeat([0, 1], [95, 5])
    chosen = balanced_fraction(labels, 0.5, 0, "file")
    assert np.bincount(labels[chosen]).tolist() == [25, 5]


def test_the_choice_is_a_function_of_the_seed():
    labels = np.arange(1000) % 10
    first, again, other = (balanced_fraction(labels, 0.1, seed, "file") for seed in (0, 0, 1))
    assert first.tolist() == again.tolist()
    assert first.tolist() != other.tolist()
    # a random tenth shares about a tenth with another one
    assert len(np.intersect1d(first, other)) < 30


def test_a_fraction_of_1_takes_all_labelled_samples():
    assert balanced_fraction(np.array([0, -1, 1, 1]), 1.0, 0, "file").tolist() == [0, 2, 3]


def test_samples_without_label_are_never_taken():
    labels = np.where(np.arange(1000) % 2, -1, np.arange(1000) % 10)
    assert (labels[balanced_fraction(labels, 0.1, 0, "file")] >= 0).all()


def test_bad_fractions():
    with pytest.raises(ValueError, match="leaves none"):
        balanced_fraction(np.arange(100) % 10, 0.01, 0, "file")
    with pytest.raises(ValueError, match="no labels"):
        balanced_fraction(np.full(5, -1), 0.5, 0, "file")


@pytest.fixture(scope="module")
def named(tmp_path_factory):
    folder = tmp_path_factory.mktemp("named")
    for name in ("cat/a.png", "cat/b.png", "dog/b.png", "dog/c.png"):
        (folder / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (len(name), 0, ord(name[-5]))).save(folder / "images" / name)
    file = folder / "named.beton"
    convert(open_source([str(folder / "images")]), file)
    return file


def test_a_list_by_whole_names_and_by_last_parts(named, tmp_path):
    (tmp_path / "list.txt").write_text("dog/b.png\n\na.png\n")
    with BetonReader(named) as reader:
        names = read_names(named)
        assert [names[k] for k in listed_samples(reader, tmp_path / "list.txt")] == sorted(
            ["dog/b.png", "cat/a.png"], key=names.index
        )


@pytest.mark.parametrize(
    ("text", "token"), [("x.png\n", "x.png"), ("b.png\n", "several names"), ("\n", "names no image")]
)
def test_bad_lists(named, tmp_path, text, token):
    (tmp_path / "list.txt").write_text(text)
    with BetonReader(named) as reader, pytest.raises(ValueError, match=token):
        listed_samples(reader, tmp_path / "list.txt")


def test_a_list_needs_the_names_of_the_file(named, tmp_path):
    lonely = tmp_path / "lonely.beton"
    lonely.write_bytes(named.read_bytes())
    (tmp_path / "list.txt").write_text("a.png\n")
    with BetonReader(lonely) as reader, pytest.raises(ValueError, match=r"lonely\.names"):
        listed_samples(reader, tmp_path / "list.txt")
