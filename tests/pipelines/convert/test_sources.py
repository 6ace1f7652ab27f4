import hashlib
import os
import pickle
import sys

import numpy as np
import pytest
from torchvision import datasets

from pipelines.convert import FolderSource, open_source


def tree(root, *names: str):
    """Files whose content is their own name."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(os.fsencode(name))
    return root


def listed(source) -> list[tuple[str, int]]:
    items = [source.item(index) for index in range(len(source.labels))]
    for index, item in enumerate(items):
        assert source.read(index) == os.fsencode(item)
    return list(zip(items, source.labels.tolist(), strict=True))


def test_class_folders(tmp_path):
    """Sorted, at any depth, in any case; what is hidden or no image is passed over."""
    root = tree(
        tmp_path / "birds",
        *("owl/b.JPG", "owl/a.png", "owl/deep/er/c.jpeg", "owl/notes.txt", "owl/.hidden.jpg"),
        *("auk/z.webp", "README.md", ".cache/x.jpg"),
    )
    source = FolderSource(root)
    assert (source.kind, source.name, source.class_names) == ("class folders", "birds", ["auk", "owl"])
    assert listed(source) == [
        ("auk/z.webp", 0),
        ("owl/a.png", 1),
        ("owl/b.JPG", 1),
        ("owl/deep/er/c.jpeg", 1),
    ]


def test_remarks(tmp_path):
    root = tree(
        tmp_path / "a", "cat/1.jpg", "cat/2.heic", "cat/3.HEIC", "dog/1.jpg", "notes.txt", "dog/LICENSE"
    )
    (remark,) = FolderSource(root).remarks
    assert remark == "passed over, as no images by their names: 2 .heic, 1 .txt, 1 without a suffix"
    assert FolderSource(tree(tmp_path / "b", "cat/1.jpg", "dog/x/1.jpg")).remarks == []
    (remark,) = FolderSource(tree(tmp_path / "c", "photos/cat/1.jpg", "photos/dog/1.jpg")).remarks
    assert remark == f"all images lie deeper: did you mean {tmp_path / 'c' / 'photos'}?"


def test_a_link_to_a_pipe_is_no_image(tmp_path):
    """Reading it would wait for ever; a link to nothing is an image that can't be read."""
    root = tree(tmp_path / "birds", "owl/a.jpg")
    os.mkfifo(tmp_path / "pipe")
    (root / "owl" / "b.jpg").symlink_to(tmp_path / "pipe")
    (root / "owl" / "c.jpg").symlink_to(tmp_path / "nothing")
    source = FolderSource(root)
    assert [source.item(k) for k in range(len(source.labels))] == ["owl/a.jpg", "owl/c.jpg"]


def test_a_split_is_of_a_data_set(tmp_path):
    root = tree(tmp_path / "birds", "owl/a.png")
    with pytest.raises(ValueError, match=r"a split is a part of cifar10, .* give the folder of the part"):
        open_source([str(root)], "test")


def test_labels_are_those_of_image_folder(tiny_photos):
    source = open_source([str(tiny_photos)])
    theirs = datasets.ImageFolder(str(tiny_photos))
    assert source.class_names == theirs.classes
    expected = {os.path.relpath(path, tiny_photos): label for path, label in theirs.samples}
    assert {source.item(k): int(source.labels[k]) for k in range(40)} == expected


def test_a_class_without_images_keeps_its_number(tmp_path):
    """So that the labels of a training and a test folder mean the same."""
    tree(tmp_path, "a/1.jpg", "c/1.jpg")
    (tmp_path / "b").mkdir()
    source = FolderSource(tmp_path)
    assert source.class_names == ["a", "b", "c"]
    assert source.labels.tolist() == [0, 2]


def test_flat_folder(tmp_path):
    source = FolderSource(tree(tmp_path, "2.jpg", "1.jpg", "notes/x.txt"))
    assert (source.kind, source.class_names) == ("flat folder", None)
    assert listed(source) == [("1.jpg", -1), ("2.jpg", -1)]


@pytest.mark.skipif(sys.platform != "linux", reason="names that are no text")
def test_any_name(tmp_path):
    names = ["zwei wörter/ü.jpg", "zwei wörter/new\nline.jpg", os.fsdecode(b"zwei w\xc3\xb6rter/\xff.jpg")]
    assert sorted(item for item, _ in listed(FolderSource(tree(tmp_path, *names)))) == sorted(names)


def test_links(tmp_path):
    """A link to a folder is followed, one that leads back up is not walked for ever, a broken one is listed."""
    root = tree(tmp_path / "root", "a/1.jpg")
    tree(tmp_path / "elsewhere", "2.jpg")
    (root / "b").symlink_to(tmp_path / "elsewhere")
    (root / "a" / "loop").symlink_to(root)
    (root / "a" / "broken.jpg").symlink_to(tmp_path / "nowhere.jpg")
    source = FolderSource(root)
    items = [source.item(k) for k in range(len(source.labels))]
    assert items[:2] == ["a/1.jpg", "a/broken.jpg"]
    assert "b/2.jpg" in items
    with pytest.raises(FileNotFoundError):
        source.read(1)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes")
def test_a_named_pipe_is_no_image(tmp_path):
    tree(tmp_path, "a/1.jpg")
    os.mkfifo(tmp_path / "a" / "2.jpg")
    assert len(FolderSource(tmp_path).labels) == 1


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ((), "no image in it"),
        (
            ("a/notes.txt", "b.txt"),
            r"no image in it \(.*\); passed over, as no images by their names: 2 .txt$",
        ),
        (("a/1.jpg", "b/1.jpg", "2.jpg"), "1 images lie beside 2 folders"),
        (("train/a/1.jpg", "val/a/1.jpg"), "train and val look like parts"),
        (("train/a/1.jpg",), "train look like parts"),
        (("Test/a/1.jpg", "train/a/1.jpg", "other/1.jpg"), "Test and train look like parts"),
    ],
)
def test_a_folder_that_says_nothing_clear(tmp_path, names, message):
    with pytest.raises(ValueError, match=message):
        open_source([str(tree(tmp_path, *names))])


def test_a_class_may_be_called_test(tmp_path):
    assert FolderSource(tree(tmp_path, "test/1.jpg", "exam/1.jpg")).class_names == ["exam", "test"]


def test_what_is_no_source(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder or file; a source is"):
        open_source([str(tmp_path / "missing")])
    tree(tmp_path, "a/1.jpg")
    with pytest.raises(ValueError, match="only tars"):
        open_source([str(tmp_path), str(tmp_path)])


def cifar_files(root, per_batch: int = 3) -> dict[str, str]:
    """CIFAR-10's files as torchvision wants them, small; and their MD5 sums."""
    folder = root / datasets.CIFAR10.base_folder
    folder.mkdir(parents=True)
    rng, sums = np.random.default_rng(0), {}
    for name in [f"data_batch_{k}" for k in range(1, 6)] + ["test_batch", "batches.meta"]:
        data = rng.integers(0, 256, (per_batch, 3072), dtype=np.uint8)
        labels = rng.integers(0, 10, per_batch).tolist()
        content = {"data": data, "labels": labels, "label_names": [f"name-{k}" for k in range(10)]}
        (folder / name).write_bytes(pickle.dumps(content))
        sums[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()
    return sums


def test_a_torchvision_data_set(tmp_path, monkeypatch):
    """torchvision's own class on files of its format, whose sums it is told."""
    sums = cifar_files(tmp_path)
    kind = datasets.CIFAR10
    monkeypatch.setattr(kind, "train_list", [[name, sums[name]] for name, _ in kind.train_list])
    monkeypatch.setattr(kind, "test_list", [[name, sums[name]] for name, _ in kind.test_list])
    monkeypatch.setattr(kind, "meta", kind.meta | {"md5": sums["batches.meta"]})
    for split, count in (("train", 15), ("test", 3)):
        source = open_source([f"cifar10:{tmp_path}"], split)
        theirs = kind(str(tmp_path), split == "train")
        assert (source.kind, source.name, len(source.labels)) == ("torchvision", f"cifar10 {split}", count)
        assert source.class_names == [f"name-{k}" for k in range(10)]
        for index, (image, label) in enumerate(theirs):
            np.testing.assert_array_equal(source.read(index), np.asarray(image))
            assert source.labels[index] == label
    with pytest.raises(ValueError, match="cifar10 has no split 'unlabeled'"):
        open_source([f"cifar10:{tmp_path}"], "unlabeled")


def test_a_data_set_that_cannot_be_downloaded(tmp_path, monkeypatch):
    def no_network(*_, **__):
        raise OSError("network is unreachable")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", no_network)
    with pytest.raises(OSError, match=r"cifar100 is not in .* and cannot be downloaded"):
        open_source([f"cifar100:{tmp_path}"])
