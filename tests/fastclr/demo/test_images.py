"""The user's folder, split into training and test images."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastclr.demo import images
from fastclr.demo.images import split_folder


def write_images(folder: Path, names: list[str]) -> None:
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number % 256, 0, 0)).save(path)


def items(source) -> list[str]:
    return [source.item(index) for index in range(len(source.labels))]


def test_a_fifth_is_held_out(tmp_path):
    names = [f"{'ab'[i % 2]}/{i:03d}.png" for i in range(50)]
    write_images(tmp_path, names)
    train, test = split_folder(tmp_path, seed=1)
    assert (len(train.labels), len(test.labels)) == (40, 10)
    assert sorted(items(train) + items(test)) == sorted(names)
    for source in (train, test):
        assert source.class_names == ["a", "b"]
        assert source.labels.tolist() == ["ab".index(item[0]) for item in items(source)]
        for index, item in enumerate(items(source)):
            assert source.read(index) == (tmp_path / item).read_bytes()
    again, _ = split_folder(tmp_path, seed=1)
    assert items(again) == items(train)
    assert items(split_folder(tmp_path, seed=2)[0]) != items(train)


def test_a_folder_that_is_split_stays_so(tmp_path):
    write_images(tmp_path / "Train", [f"a/{i}.png" for i in range(15)])
    write_images(tmp_path / "val", [f"a/v{i}.png" for i in range(6)])
    train, test = split_folder(tmp_path)
    assert sorted(items(test)) == [f"a/v{i}.png" for i in range(6)]
    assert len(items(train)) == 15


def test_a_flat_folder_has_no_labels(tmp_path):
    write_images(tmp_path, [f"{i}.jpg" for i in range(30)])
    train, test = split_folder(tmp_path)
    assert (len(train.labels), len(test.labels)) == (24, 6)
    assert set(train.labels) == {-1}
    assert train.class_names is None


def test_of_a_large_folder_some_are_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "MAX_IMAGES", 40)
    write_images(tmp_path, [f"{'abcd'[i % 4]}/{i}.png" for i in range(120)])
    train, test = split_folder(tmp_path)
    assert (len(train.labels), len(test.labels)) == (32, 8)
    assert not set(items(train)) & set(items(test))
    assert len(np.unique(train.labels)) == 4


def test_what_is_no_folder_of_images_is_refused(tmp_path):
    with pytest.raises(NotADirectoryError, match=r"nowhere is not a folder"):
        split_folder(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no image in it"):
        split_folder(tmp_path)
    write_images(tmp_path, [f"{i}.png" for i in range(19)])
    with pytest.raises(ValueError, match="holds 19 images; the demo needs at least 20"):
        split_folder(tmp_path)
