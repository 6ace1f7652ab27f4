import errno
import hashlib
import os
import pickle
import sys
import tarfile
import tracemalloc
from types import SimpleNamespace

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
    """Images are sorted and found at any depth, in any case; hidden files and other files are ignored."""
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
    assert remark == (
        "ignored, not image files: 2 .heic, 1 .txt, 1 without a suffix; labels in .txt files are not read"
    )
    assert FolderSource(tree(tmp_path / "b", "cat/1.jpg", "dog/x/1.jpg")).remarks == []


def test_a_link_to_a_pipe_is_no_image(tmp_path):
    """A pipe is ignored, because reading it would wait for ever; a dangling link is an image that can't be read."""
    root = tree(tmp_path / "birds", "owl/a.jpg")
    os.mkfifo(tmp_path / "pipe")
    (root / "owl" / "b.jpg").symlink_to(tmp_path / "pipe")
    (root / "owl" / "c.jpg").symlink_to(tmp_path / "nothing")
    source = FolderSource(root)
    assert [source.item(k) for k in range(len(source.labels))] == ["owl/a.jpg", "owl/c.jpg"]


def test_a_split_is_of_a_data_set(tmp_path):
    root = tree(tmp_path / "birds", "owl/a.png")
    with pytest.raises(
        ValueError,
        match=r"a split is a part of imagenet, torchvision, cifar10, .* give the folder of the part",
    ):
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
    """Files whose names are not UTF-8 are read; reports escape the names, so that they can be printed and saved."""
    names = ["wörter/ü.jpg", "wörter/new\nline.jpg", os.fsdecode(b"caf\xe9/\xff.jpg")]
    source = FolderSource(tree(tmp_path, *names, os.fsdecode(b"caf\xe9/junk.\xe9\x1b[31m")))
    assert source.class_names == ["caf\\udce9", "wörter"]
    found = {source.item(k): source.read(k) for k in range(3)}
    assert found == {
        "wörter/ü.jpg": "wörter/ü.jpg".encode(),
        "wörter/new\nline.jpg": "wörter/new\nline.jpg".encode(),
        "caf\\udce9/\\udcff.jpg": b"caf\xe9/\xff.jpg",
    }
    assert source.remarks == [r"ignored, not image files: 1 .\udce9\x1b[31m"]


def test_links(tmp_path):
    """Links to folders are followed, those to a folder above only once; dangling links are listed."""
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
            r"no image in it \(.*\); ignored, not image files: 2 .txt",
        ),
        (("a/1.jpg", "b/1.jpg", "2.jpg"), "1 images lie beside 2 folders"),
        (("train/a/1.jpg", "val/a/1.jpg"), "train and val look like splits .*/train$"),
        (("train/a/1.jpg",), "train look like splits"),
        (("Test/a/1.jpg", "train/a/1.jpg", "other/1.jpg"), "Test and train look like splits"),
    ],
)
def test_ambiguous_folders_are_refused(tmp_path, names, message):
    with pytest.raises(ValueError, match=message):
        open_source([str(tree(tmp_path, *names))])


def test_a_class_may_be_called_test(tmp_path):
    assert FolderSource(tree(tmp_path, "test/1.jpg", "exam/1.jpg")).class_names == ["exam", "test"]


def test_paths_that_are_no_source(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder or file; a source is"):
        open_source([str(tmp_path / "missing")])
    tree(tmp_path, "a/1.jpg")
    with pytest.raises(ValueError, match="only tars"):
        open_source([str(tmp_path), str(tmp_path)])


@pytest.mark.parametrize("junk", ["__MACOSX", "lost+found", "@eaDir", ".cache", "$RECYCLE.BIN"])
def test_folders_of_systems_are_no_classes(tmp_path, junk):
    source = FolderSource(
        tree(tmp_path, "cat/1.jpg", f"{junk}/x/1.jpg", f"zebra/{junk}/1.jpg", "zebra/2.jpg")
    )
    assert source.class_names == ["cat", "zebra"]
    assert listed(source) == [("cat/1.jpg", 0), ("zebra/2.jpg", 1)]
    assert source.remarks == [f"ignored folders: '{junk}'"]


def test_a_folder_with_other_files_only_is_no_class(tmp_path):
    root = tree(tmp_path, "annotations/1.xml", "cat/1.jpg", "dog/1.jpg", "scripts/deep/a.py")
    (root / "bear").mkdir()
    source = FolderSource(root)
    assert source.class_names == ["bear", "cat", "dog"]
    assert listed(source) == [("cat/1.jpg", 1), ("dog/1.jpg", 2)]
    assert source.remarks == [
        "ignored, not image files: 1 .xml, 1 .py; labels in .xml files are not read",
        "classes without images, since their folders are empty: 'bear'",
        "no classes, since no image is in these folders: 'annotations', 'scripts'",
    ]


@pytest.mark.parametrize(
    ("names", "meant"),
    [
        (("photos/cat/1.jpg", "photos/dog/1.jpg"), "photos"),
        (
            ("Annotations/1.xml", "Data/CLS-LOC/train/n1/1.JPEG", "Data/CLS-LOC/val/1.JPEG"),
            "Data/CLS-LOC/train",
        ),
        (("ILSVRC/Data/CLS-LOC/train/n1/1.JPEG", "LOC_val_solution.csv"), "ILSVRC/Data/CLS-LOC/train/n1"),
        (("images/Val/cat/1.jpg", "images/TRAIN/cat/1.jpg", "labels/1.txt"), "images/TRAIN"),
    ],
)
def test_a_folder_some_levels_above_the_classes(tmp_path, names, meant):
    """In Kaggle's ImageNet the only folder with images is not a class."""
    with pytest.raises(ValueError, match=f"lie deeper .*: {tmp_path}/{meant}$"):
        FolderSource(tree(tmp_path, *names))


def read_error(source, item: str) -> Exception:
    (index,) = [k for k in range(len(source.labels)) if source.item(k) == item]
    with pytest.raises(OSError) as caught:
        source.read(index)
    return caught.value


def test_links_that_lead_nowhere_or_to_themselves(tmp_path):
    root = tree(tmp_path / "root", "cat/1.jpg", "dog/1.jpg")
    for name in ("loop", "cat/loop", "cat/loop.jpg"):
        (root / name).symlink_to(root / name)
    (root / "gone").symlink_to(tmp_path / "gone")
    source = FolderSource(root)
    assert source.class_names == ["cat", "dog"]
    assert [source.item(k) for k in range(3)] == ["cat/1.jpg", "cat/loop.jpg", "dog/1.jpg"]
    assert read_error(source, "cat/loop.jpg").errno == errno.ELOOP
    (remark,) = source.remarks
    assert remark.startswith("ignored, links that lead nowhere:")
    assert all(name in remark for name in ("'loop'", "'gone'", "'cat/loop'"))


def test_a_path_that_is_too_long(tmp_path):
    """A path that is too long is an item that fails; the images above it are read."""
    root = tree(tmp_path / "root", "cat/1.jpg", "dog/1.jpg")
    here = os.open(root / "cat", os.O_RDONLY)
    for _ in range(30):
        os.mkdir("x" * 200, dir_fd=here)
        below = os.open("x" * 200, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    source = FolderSource(root)
    items = [source.item(k) for k in range(len(source.labels))]
    assert (items[0], items[2], len(items)) == ("cat/1.jpg", "dog/1.jpg", 3)
    assert read_error(source, items[1]).errno == errno.ENAMETOOLONG
    assert source.remarks[0].startswith("folders that cannot be read: 'cat/xxx")


@pytest.mark.parametrize("folder", ["cat/secret", "secret"])
def test_a_folder_that_cannot_be_read(tmp_path, monkeypatch, folder):
    """The folder is an item that fails, so that the report names it and `--on-error stop` stops."""
    root, scan = tree(tmp_path, "cat/1.jpg", "dog/1.jpg", f"{folder}/1.jpg"), os.scandir

    def scandir(path):  # root may read all, so the system's refusal is played
        if str(path).endswith("secret"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr("os.scandir", scandir)
    source = FolderSource(root)
    assert source.class_names == (["cat", "dog"] if folder == "cat/secret" else ["cat", "dog", "secret"])
    assert isinstance(read_error(source, folder), PermissionError)
    assert source.remarks == [f"folders that cannot be read: '{folder}' (Permission denied)"]


def test_a_file_that_is_too_large(tmp_path):
    """A sparse file of 6 GB is refused by its size without reading it; the other files are read."""
    root = tree(tmp_path, "cat/1.jpg", "cat/2.jpg")
    os.truncate(root / "cat" / "1.jpg", 6 << 30)
    source = open_source([str(root)])
    tracemalloc.start()
    with pytest.raises(ValueError, match="--max-file-mb"):
        source.read(0)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
    assert source.read(1) == b"cat/2.jpg"
    os.truncate(root / "cat" / "1.jpg", 3 * 10**6)
    assert len(open_source([str(root)], max_file_mb=3).read(0)) == 3 * 10**6
    with pytest.raises(ValueError, match=r"3 MB, more than the 2 MB .*--max-file-mb"):
        open_source([str(root)], max_file_mb=2).read(0)


def test_reading_in_pieces(tmp_path, monkeypatch):
    """A file system may return fewer bytes than requested, and report no sizes."""
    root, content = tmp_path / "set", bytes(range(256)) * 40
    (root / "cat").mkdir(parents=True)
    (root / "cat" / "1.jpg").write_bytes(content)
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(root, ".")
    source, tar_source = FolderSource(root, max_file_mb=1), open_source([str(tmp_path / "a.tar")])
    read = os.read
    monkeypatch.setattr("os.read", lambda descriptor, size: read(descriptor, min(size, 1000)))
    assert source.read(0) == tar_source.read(0) == content
    sizes = SimpleNamespace(st_size=0)
    monkeypatch.setattr("os.fstat", lambda descriptor: sizes)
    assert source.read(0) == content
    os.truncate(root / "cat" / "1.jpg", 1_000_001)
    with pytest.raises(ValueError, match="--max-file-mb"):
        source.read(0)


def test_a_command_is_no_source():
    with pytest.raises(ValueError, match=r"pipe:curl -s x is a URL.*download"):
        open_source(["pipe:curl -s x"])


def test_a_pipe_is_no_source(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match=r"pipe is a pipe"):
        open_source([str(tmp_path / "pipe")])


def cifar_files(root, per_batch: int = 3) -> dict[str, str]:
    """Small files in the format of CIFAR-10, as torchvision expects them; and their MD5 sums."""
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
