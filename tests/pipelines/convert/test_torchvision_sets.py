"""torchvision's own classes, on files of their formats."""

import hashlib

import numpy as np
import pytest
import scipy.io
from PIL import Image
from support.imagenet_sets import image
from torchvision import datasets

from pipelines.convert import convert, open_source


def open_set(name: str, root, split: str | None = None):
    return open_source([f"torchvision:{name}:{root}"], split)


def flowers(root):
    """Flowers102 as its authors' archive unpacks: numbered JPEGs, labels and splits as MATLAB files."""
    folder = root / "flowers-102"
    (folder / "jpg").mkdir(parents=True)
    for k in range(1, 7):
        (folder / "jpg" / f"image_{k:05}.jpg").write_bytes(image(str(k)))
    scipy.io.savemat(folder / "imagelabels.mat", {"labels": np.array([[3, 1, 2, 3, 1, 2]])})
    scipy.io.savemat(folder / "setid.mat", {"trnid": [[1, 2]], "valid": [[3, 4]], "tstid": [[5, 6]]})
    return root


@pytest.mark.parametrize("split", [None, "train", "val", "test"])
def test_files_are_kept_byte_for_byte(tmp_path, monkeypatch, split):
    """The same samples as the data set yields, read as the files that they are."""
    flowers(tmp_path)
    monkeypatch.setattr(datasets.Flowers102, "_check_integrity", lambda self: True)
    source = open_set("Flowers102", tmp_path, split)
    theirs = datasets.Flowers102(str(tmp_path), split or "train")
    assert len(source.labels) == len(theirs) > 0
    for index, (pixels, label) in enumerate(theirs):
        assert source.labels[index] == label
        number = int(source.item(index)[-9:-4])
        assert source.read(index) == image(str(number))
        assert source.item(index) == f"flowers-102/jpg/image_{number:05}.jpg"
        assert pixels.size == (32, 24)
    assert convert(source, tmp_path / "out.beton").kept == len(theirs)


def test_pixels_where_there_are_no_files(tmp_path):
    rng = np.random.default_rng(0)
    content = {
        "X": rng.integers(0, 256, (32, 32, 3, 5), np.uint8),
        "y": np.array([[10], [1], [2], [3], [10]]),
    }
    scipy.io.savemat(tmp_path / "test_32x32.mat", content)
    kind = datasets.SVHN
    md5 = hashlib.md5((tmp_path / "test_32x32.mat").read_bytes()).hexdigest()
    original = kind.split_list["test"]
    kind.split_list["test"] = [*original[:2], md5]
    try:
        source = open_set("SVHN", tmp_path, "test")
        assert source.labels.tolist() == [0, 1, 2, 3, 0]
        assert (source.item(3), source.class_names) == ("SVHN test 3", None)
        for k in range(5):
            np.testing.assert_array_equal(source.read(k), content["X"][..., k])
        assert source.remarks == ["read as pixels: the data set does not tell its files"]
    finally:
        kind.split_list["test"] = original


def test_a_split_as_train_or_not(tmp_path):
    """MNIST's kind of constructor: gray pixels become RGB."""
    written = {}
    for train, count in ((True, 4), (False, 3)):
        folder = tmp_path / "MNIST" / "raw"
        folder.mkdir(parents=True, exist_ok=True)
        prefix = "train" if train else "t10k"
        pixels = np.random.default_rng(count).integers(0, 256, (count, 28, 28), np.uint8)
        header = np.array([0x803, count, 28, 28], ">i4").tobytes()
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(header + pixels.tobytes())
        labels = np.arange(count, dtype=np.uint8)
        header = np.array([0x801, count], ">i4").tobytes()
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(header + labels.tobytes())
        written[train] = pixels
    for train, pixels in written.items():
        source = open_set("MNIST", tmp_path, "train" if train else "test")
        assert source.labels.tolist() == list(range(len(pixels)))
        assert source.class_names[1] == "1 - one"
        np.testing.assert_array_equal(source.read(1), np.repeat(pixels[1][:, :, None], 3, 2))
    with pytest.raises(ValueError, match="MNIST has no split 'extra', only train and test"):
        open_set("MNIST", tmp_path, "extra")


def test_image_folder(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (9, 9)).save(tmp_path / name / "1.png")
    source = open_set("ImageFolder", tmp_path)
    assert (source.class_names, source.labels.tolist(), source.item(1)) == (["a", "b"], [0, 1], "b/1.png")
    with pytest.raises(ValueError, match="ImageFolder has no split 'train'"):
        open_set("ImageFolder", tmp_path, "train")


@pytest.mark.parametrize(
    ("name", "split", "message"),
    [
        ("Flower102", None, "no data set 'Flower102'; do you mean Flowers102"),
        ("wrap_dataset_for_transforms_v2", None, "no data set"),
        ("os", None, "no data set 'os'"),
        ("Flowers102", "trian", r"Flowers102: .*trian"),
        ("VOCSegmentation", None, "VOCSegmentation is not in .* cannot be downloaded"),
    ],
)
def test_what_cannot_be_opened(tmp_path, monkeypatch, name, split, message):
    def no_network(*_, **__):
        raise OSError("network is unreachable")

    for module in ("flowers102", "voc"):
        monkeypatch.setattr(
            f"torchvision.datasets.{module}.download_and_extract_archive", no_network, raising=False
        )
    with pytest.raises((ValueError, OSError), match=message) as caught:
        open_set(name, tmp_path, split)
    assert str(caught.value).isprintable()


def test_what_yields_no_number(tmp_path):
    with pytest.raises(ValueError, match="it needs a name and a folder"):
        open_source(["torchvision:Flowers102"])
    (tmp_path / "list.txt").write_text("")
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    for name in ("a", "b"):
        (tmp_path / name / "1.txt").write_text("x")
    with pytest.raises((ValueError, OSError), match="ImageFolder"):
        open_set("ImageFolder", tmp_path)
