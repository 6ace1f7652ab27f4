"""ImageNet in every layout: the same labels and pixels; and what is said where files are missing or corrupt."""

import gzip
import hashlib
import json
import shutil
import sys
from pathlib import Path

import pytest
from support.imagenet_sets import (
    LAYOUTS,
    TITLES,
    WNIDS,
    devkit_files,
    image,
    tar_of,
    truth,
    write_devkit,
    write_layout,
    write_parquet,
)

from fastclr.cli.main import main
from pipelines.beton import BetonReader
from pipelines.convert import imagenet, open_source
from pipelines.convert.names_file import read_names


def plain_name(name: str) -> str:
    """The name of the image as the archives have it: Hugging Face's end in the wnid."""
    name = name.rpartition("/")[2]
    stem, _, wnid = name.removesuffix(".JPEG").rpartition("_")
    return f"{stem}.JPEG" if wnid in WNIDS and stem else name


def content_of(source) -> dict[str, tuple[int, bytes]]:
    numbers = range(len(source.labels))
    return {plain_name(source.item(k)): (int(source.labels[k]), source.read(k)) for k in numbers}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_all_layouts_give_the_same_labels_and_pixels(layout, tmp_path, capsys):
    """Through the command, in the shuffled order, with the names beside the file."""
    root, expected = write_layout(layout, tmp_path / "set"), truth()
    for split in ("train", "val"):
        out = tmp_path / f"{split}.beton"
        assert main(["convert", f"imagenet:{root}", str(out), "--split", split, "--on-error", "stop"]) == 0
        printed = capsys.readouterr().out
        assert f"{len(expected[split])} images; ImageNet's {split} split has" in printed
        with BetonReader(out) as reader:
            names = [plain_name(name) for name in read_names(out)]
            found = {
                name: (int(reader.labels[k]), reader.image_bytes(k).tobytes()) for k, name in enumerate(names)
            }
            assert reader.class_names == WNIDS
        assert found == expected[split]
        sidecar = json.loads((tmp_path / f"{split}.json").read_text())
        assert sidecar["source"]["kind"] == "imagenet"
        if layout != "folders":  # which has no file that lists the classes
            assert sidecar["class_titles"] == [TITLES[wnid] for wnid in WNIDS]


@pytest.mark.parametrize("layout", ["kaggle", "archives"])
def test_a_class_without_images_keeps_its_number(layout, tmp_path):
    root = write_layout(layout, tmp_path / "set")
    if layout == "kaggle":
        shutil.rmtree(root / "ILSVRC" / "Data" / "CLS-LOC" / "train" / WNIDS[1])
    else:
        inner = {f"{wnid}.tar": tar_of({f"{wnid}_1.JPEG": b"x"}) for wnid in WNIDS if wnid != WNIDS[1]}
        (root / "ILSVRC2012_img_train.tar").write_bytes(tar_of(inner))
    source = open_source([f"imagenet:{root}"])
    assert source.class_names == WNIDS
    assert sorted(set(source.labels.tolist())) == [0, 2, 3]


def test_class_tars_in_a_folder(tmp_path):
    (tmp_path / "train").mkdir()
    for wnid in WNIDS:
        (tmp_path / "train" / f"{wnid}.tar").write_bytes(tar_of({f"{wnid}_1.JPEG": image(f"{wnid}_1.JPEG")}))
    source = open_source([f"imagenet:{tmp_path}"])
    assert (source.class_names, source.labels.tolist()) == (WNIDS, [0, 1, 2, 3])
    assert source.name == "train (class tars)"


def test_kaggles_tree_from_its_inner_folder(tmp_path):
    root = write_layout("kaggle", tmp_path / "set")
    source = open_source([f"imagenet:{root / 'ILSVRC'}"], "val")
    assert content_of(source) == truth()["val"]


def test_the_order_of_layouts(tmp_path):
    root = write_layout("archives", tmp_path / "set")
    LAYOUTS["folders"](root)
    source = open_source([f"imagenet:{root}"])
    assert source.name == "train (archives)"
    assert "read from archives; the folder also has folders" in source.remarks


def test_the_flat_folder_with_kaggles_table(tmp_path):
    root = write_layout("flat", tmp_path / "set")
    kaggle = write_layout("kaggle", tmp_path / "kaggle")
    shutil.rmtree(root / "ILSVRC2012_devkit_t12")
    shutil.copy(kaggle / "LOC_val_solution.csv", root)
    source = open_source([f"imagenet:{root}"], "val")
    assert content_of(source) == truth()["val"]
    assert source.class_names == WNIDS


def test_labels_without_images_and_images_without_labels(tmp_path):
    """Each is named: left out, or the end of the conversion."""
    root = write_layout("flat", tmp_path / "set")
    (root / "val" / "ILSVRC2012_val_00000003.JPEG").rename(root / "val" / "ILSVRC2012_val_00000333.JPEG")
    out = tmp_path / "val.beton"
    assert main(["convert", f"imagenet:{root}", str(out), "--split", "val"]) == 0
    skipped = json.loads((tmp_path / "val.json").read_text())["skipped"]
    assert skipped == {
        "ILSVRC2012_val_00000333.JPEG": "no label in ILSVRC2012_devkit_t12",
        "ILSVRC2012_val_00000003": "in ILSVRC2012_devkit_t12, but not among the images",
    }
    assert len(BetonReader(out)) == 9
    stop = ["--split", "val", "--on-error", "stop"]
    assert main(["convert", f"imagenet:{root}", str(tmp_path / "stop.beton"), *stop]) == 2
    assert not list(tmp_path.glob("*stop*"))


def refusal(root: Path, split: str, capsys) -> str:
    """The one line that the command says; nothing is written."""
    before = sorted(path.name for path in root.parent.iterdir())
    assert main(["convert", f"imagenet:{root}", str(root.parent / "out.beton"), "--split", split]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert sorted(path.name for path in root.parent.iterdir()) == before
    return said


def test_no_devkit(tmp_path, capsys):
    root = write_layout("archives", tmp_path / "set")
    (root / "ILSVRC2012_devkit_t12.tar.gz").unlink()
    assert "put ILSVRC2012_devkit_t12.tar.gz or Kaggle's LOC_val_solution.csv" in refusal(root, "val", capsys)
    (root / "ILSVRC2012_devkit_t3.tar.gz").write_bytes(b"dogs")
    assert "devkit_t3.tar.gz': the development kit of another task" in refusal(root, "val", capsys)


def test_a_second_devkit(tmp_path, capsys):
    root = write_layout("archives", tmp_path / "set")
    shutil.copy(root / "ILSVRC2012_devkit_t12.tar.gz", root / "ILSVRC2012_devkit_t12 (1).tar.gz")
    assert content_of(open_source([f"imagenet:{root}"], "val")) == truth()["val"]
    other = devkit_files()
    name = "data/ILSVRC2012_validation_ground_truth.txt"
    other[name] = other[name].replace(b"4", b"3")
    for name, content in other.items():
        (root / "ILSVRC2012_devkit_t12" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "ILSVRC2012_devkit_t12" / name).write_bytes(content)
    assert "two development kits that differ" in refusal(root, "val", capsys)


def repacked(files: dict[str, bytes]) -> bytes:
    return gzip.compress(tar_of({f"ILSVRC2012_devkit_t12/{name}": data for name, data in files.items()}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda kit, files: kit[: len(kit) // 2], "corrupt"),
        (lambda kit, files: b"no gzip", "corrupt"),
        (lambda kit, files: gzip.compress(bytes(1 << 29)), "over 256 MB unpacked"),
        (lambda kit, files: gzip.compress(b"no tar" * 200), "no tar file"),
        (lambda kit, files: repacked({"readme.txt": b""}), "no meta.mat in it"),
        (lambda kit, files: repacked(files | {"data/meta.mat": b"MATLAB"}), "meta.mat: no table of"),
        (
            lambda kit, files: repacked(files | {"data/meta.mat": files["data/meta.mat"][:-500]}),
            "meta.mat: no table of",
        ),
        (
            lambda kit, files: repacked(files | {"data/ILSVRC2012_validation_ground_truth.txt": b"1\n77\n"}),
            "line 2: b'77' is the number of no class",
        ),
        (
            lambda kit, files: repacked(files | {"data/ILSVRC2012_validation_ground_truth.txt": b"\xff"}),
            "line 1: .*number of no class",
        ),
    ],
)
def test_a_damaged_devkit(damage, message, tmp_path):
    root = write_layout("archives", tmp_path / "set")
    kit = root / "ILSVRC2012_devkit_t12.tar.gz"
    kit.write_bytes(damage(kit.read_bytes(), devkit_files()))
    with pytest.raises(ValueError, match=rf"ILSVRC2012_devkit_t12.*{message}") as caught:
        open_source([f"imagenet:{root}"], "val")
    assert str(caught.value).isprintable()


def test_without_scipy(tmp_path, monkeypatch):
    root = write_layout("archives", tmp_path / "set")
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(ValueError, match=r"meta\.mat needs scipy .*pip install 'fastclr\[imagenet\]'"):
        open_source([f"imagenet:{root}"], "val")


def test_the_sums_of_the_archives(tmp_path, monkeypatch, capsys):
    root = write_layout("archives", tmp_path / "set")
    sums = {name: hashlib.md5((root / name).read_bytes()).hexdigest() for name in imagenet.MD5}
    out = tmp_path / "out.beton"
    assert main(["convert", f"imagenet:{root}", str(out), "--check"]) == 2
    assert "ILSVRC2012_img_train.tar: its MD5 sum is " in capsys.readouterr().err
    monkeypatch.setattr(imagenet, "MD5", sums)
    assert main(["convert", f"imagenet:{root}", str(out), "--check"]) == 0
    write_devkit(root).write_bytes(b"another")
    assert main(["convert", f"imagenet:{root}", str(out), "--check", "--overwrite"]) == 2
    assert "devkit_t12.tar.gz: its MD5 sum" in capsys.readouterr().err
    folders = write_layout("folders", tmp_path / "folders")
    assert main(["convert", f"imagenet:{folders}", str(tmp_path / "b.beton"), "--check"]) == 2
    assert "leave --check out" in capsys.readouterr().err
    assert main(["convert", str(folders / "train"), str(tmp_path / "b.beton"), "--check"]) == 2
    assert "needs imagenet:DIR" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("make", "split", "message"),
    [
        (lambda root: None, "train", "no ImageNet for the split train; .* has nothing"),
        (lambda root: None, "test", "no split 'test', only train and val"),
        (lambda root: (root / "notes.txt").touch(), "val", "has 'notes.txt'"),
        (
            lambda root: tar(root, {"n01440764.tar": b""}),
            "train",
            "'n01440764.tar': no tar file, but an empty",
        ),
        (lambda root: tar(root, {"1.JPEG": b"x"}), "train", "no folders or tars of classes"),
        (lambda root: mapping(root, "tench"), "train", "LOC_synset_mapping.txt, line 1: no class"),
        (
            lambda root: mapping(root, "n01440764 a\nn01440764 b"),
            "train",
            "line 2: a class that an earlier line has",
        ),
        (lambda root: mapping(root, ""), "train", "LOC_synset_mapping.txt: empty"),
    ],
)
def test_what_is_no_imagenet(make, split, message, tmp_path):
    (tmp_path / "set").mkdir()
    make(tmp_path / "set")
    with pytest.raises((ValueError, OSError), match=message) as caught:
        open_source([f"imagenet:{tmp_path / 'set'}"], split)
    assert str(caught.value).isprintable()


def tar(root: Path, files: dict[str, bytes]) -> None:
    (root / "ILSVRC2012_img_train.tar").write_bytes(tar_of(files))


def mapping(root: Path, text: str) -> None:
    LAYOUTS["folders"](root)
    (root / "LOC_synset_mapping.txt").write_text(text)


def test_a_truncated_inner_tar(tmp_path):
    """Cut off inside, so that the outer tar is whole: the error names both, and the member."""
    whole = tar_of({"n01440764_1.JPEG": bytes(3000), "n01440764_2.JPEG": bytes(3000)})
    for length, message in (
        (4100, "has 3,000 bytes by its header, but the file ends after"),
        (3800, "ends after"),
    ):
        tar(tmp_path, {"n01440764.tar": whole[:length], "n01443537.tar": whole})
        with pytest.raises(ValueError, match=message) as caught:
            open_source([f"imagenet:{tmp_path}"])
        assert "ILSVRC2012_img_train.tar: 'n01440764.tar': corrupt tar" in str(caught.value)


def test_any_number_of_classes(tmp_path):
    """One class tar, and ones whose wnids are in a row as the numbers of shards are."""
    for wnids in (["n01440764"], ["n01440764", "n01440765"]):
        tar(tmp_path, {f"{wnid}.tar": tar_of({f"{wnid}_1.JPEG": b"x"}) for wnid in wnids})
        source = open_source([f"imagenet:{tmp_path}"])
        assert (source.class_names, source.labels.tolist()) == (wnids, list(range(len(wnids))))


def test_wnids_need_all_names(tmp_path):
    """Where the rows have no wnid in their names, the readable names are the classes."""
    (tmp_path / "data").mkdir()
    rows = [(None, image("a"), 0), ("x.JPEG", image("b"), 1)]
    write_parquet(tmp_path / "data" / "train-00000-of-00001.parquet", rows)
    source = open_source([f"imagenet:{tmp_path}"])
    assert source.class_names == [TITLES[wnid] for wnid in WNIDS]
    (tmp_path / "LOC_synset_mapping.txt").write_text("".join(f"{wnid} {TITLES[wnid]}\n" for wnid in WNIDS))
    assert open_source([f"imagenet:{tmp_path}"]).class_names == WNIDS
    (tmp_path / "LOC_synset_mapping.txt").write_text(f"{WNIDS[0]} x\n")
    with pytest.raises(ValueError, match=r"has 4 classes and LOC_synset_mapping\.txt lists 1"):
        open_source([f"imagenet:{tmp_path}"])


def test_torchvisions_image_net_is_the_same(tmp_path, monkeypatch):
    """torchvision's own class on a copy of the archives, which it unpacks."""
    from torchvision.datasets import imagenet as theirs

    root = write_layout("archives", tmp_path / "set")
    copy = shutil.copytree(root, tmp_path / "copy")
    meta = {
        key: (name, hashlib.md5((root / name).read_bytes()).hexdigest())
        for key, (name, _) in theirs.ARCHIVE_META.items()
    }
    monkeypatch.setattr(theirs, "ARCHIVE_META", meta)
    for split in ("train", "val"):
        data = theirs.ImageNet(str(copy), split)
        samples = {Path(path).name: (label, Path(path).read_bytes()) for path, label in data.samples}
        source = open_source([f"imagenet:{root}"], split)
        assert content_of(source) == samples
        assert source.class_names == data.wnids
        assert [tuple(title.split(", ")) for title in source.class_titles] == data.classes
