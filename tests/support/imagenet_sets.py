"""Writes small ImageNets of the real names and structure, in each layout that people have.

As a script: `python tests/support/imagenet_sets.py FOLDER` writes all layouts below FOLDER.
"""

import csv
import io
import json
import os
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import simplejpeg
from scipy.io import savemat

CLASSES = {
    3: ("n01484850", "great white shark, white shark, man-eater, man-eating shark, Carcharodon carcharias"),
    1: ("n01440764", "tench, Tinca tinca"),
    2: ("n02123045", "tabby, tabby cat"),
    4: ("n01443537", "goldfish, Carassius auratus"),
}
"""ILSVRC id → wnid and readable name; the ids are not in the order of the wnids, as the real ones."""
INNER = {1001: ("n00001740", "entity", [1002]), 1002: ("n00015388", "animal, animate being", [1, 2, 3, 4])}
"""Nodes of WordNet's tree above the classes, with their children; they have no images."""
GROUND_TRUTH = [4, 1, 1, 3, 2, 2, 4, 3, 1, 2]
"""ILSVRC id of each validation image."""
NUM_TRAIN = 3
"""Training images of a class."""
WNIDS = sorted(wnid for wnid, _ in CLASSES.values())
TITLES = dict(CLASSES.values())


def image(name: str) -> bytes:
    """A JPEG drawn from its name."""
    rng = np.random.default_rng(list(os.fsencode(name)))
    return simplejpeg.encode_jpeg(rng.integers(0, 256, (24, 32, 3), np.uint8))


def train_names() -> list[str]:
    return [f"{wnid}_{k * 37 + 1}.JPEG" for wnid in WNIDS for k in range(NUM_TRAIN)]


def val_names() -> list[str]:
    return [f"ILSVRC2012_val_{k:08}.JPEG" for k in range(1, len(GROUND_TRUTH) + 1)]


def val_wnids() -> list[str]:
    return [CLASSES[id][0] for id in GROUND_TRUTH]


def truth() -> dict[str, dict[str, tuple[int, bytes]]]:
    """Split → name → label and file, as every layout must give them."""
    train = {name: (WNIDS.index(name[:9]), image(name)) for name in train_names()}
    pairs = zip(val_names(), val_wnids(), strict=True)
    return {"train": train, "val": {name: (WNIDS.index(wnid), image(name)) for name, wnid in pairs}}


def tar_of(files: dict[str, bytes]) -> bytes:
    """An uncompressed tar."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


def meta_mat() -> bytes:
    """The development kit's table of classes: an array of structs, as MATLAB wrote it."""
    names = [
        "ILSVRC2012_ID",
        "WNID",
        "words",
        "gloss",
        "num_children",
        "children",
        "wordnet_height",
        "num_train_images",
    ]
    leaves = [(id, wnid, words, "a gloss", 0, [], 0, 1300) for id, (wnid, words) in CLASSES.items()]
    inner = [
        (id, wnid, words, "a gloss", len(below), below, 2, 0) for id, (wnid, words, below) in INNER.items()
    ]
    synsets = np.zeros((len(leaves) + len(inner), 1), [(name, object) for name in names])
    for row, values in zip(synsets[:, 0], sorted(leaves) + inner, strict=True):
        for name, value in zip(names, values, strict=True):
            row[name] = value if isinstance(value, str) else np.array(value, np.float64)
    out = io.BytesIO()
    savemat(out, {"synsets": synsets})
    return out.getvalue()


def devkit_files() -> dict[str, bytes]:
    truth_text = "".join(f"{id}\n" for id in GROUND_TRUTH).encode()
    return {
        "readme.txt": b"Development kit of ILSVRC 2012",
        "data/meta.mat": meta_mat(),
        "data/ILSVRC2012_validation_ground_truth.txt": truth_text,
        "data/ILSVRC2012_test_size.txt": b"100000",
    }


def write_devkit(folder: Path) -> Path:
    path = folder / "ILSVRC2012_devkit_t12.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for name, content in devkit_files().items():
            info = tarfile.TarInfo(f"ILSVRC2012_devkit_t12/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def write_archives(root: Path) -> None:
    """As image-net.org has them: a tar of class tars, a flat tar, and the development kit."""
    classes = {
        f"{wnid}.tar": tar_of({name: image(name) for name in train_names() if name.startswith(wnid)})
        for wnid in WNIDS
    }
    (root / "ILSVRC2012_img_train.tar").write_bytes(tar_of(classes))
    (root / "ILSVRC2012_img_val.tar").write_bytes(tar_of({name: image(name) for name in val_names()}))
    write_devkit(root)


def write_kaggle(root: Path) -> None:
    """As Kaggle's "imagenet-object-localization-challenge" unpacks."""
    data = root / "ILSVRC" / "Data" / "CLS-LOC"
    _write_train(data / "train")
    for split, names in (("val", val_names()), ("test", ["ILSVRC2012_test_00000001.JPEG"])):
        (data / split).mkdir()
        for name in names:
            (data / split / name).write_bytes(image(name))
    boxes = root / "ILSVRC" / "Annotations" / "CLS-LOC" / "val"
    boxes.mkdir(parents=True)
    (boxes / "ILSVRC2012_val_00000001.xml").write_text("<annotation></annotation>")
    mapping = "".join(f"{wnid} {TITLES[wnid]}\n" for wnid in WNIDS)
    (root / "LOC_synset_mapping.txt").write_text(mapping)
    with open(root / "LOC_val_solution.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["ImageId", "PredictionString"])
        for k in np.random.default_rng(0).permutation(len(GROUND_TRUTH)):
            wnid = val_wnids()[k]
            boxes_text = f"{wnid} 111 108 441 193 " + (f"{wnid} 1 2 3 4 " if k % 2 else "")
            table.writerow([val_names()[k].removesuffix(".JPEG"), boxes_text])


def write_folders(root: Path) -> None:
    """Extracted, and the validation images sorted into folders."""
    _write_train(root / "train")
    for name, wnid in zip(val_names(), val_wnids(), strict=True):
        (root / "val" / wnid).mkdir(parents=True, exist_ok=True)
        (root / "val" / wnid / name).write_bytes(image(name))


def write_flat(root: Path) -> None:
    """Extracted, the validation images in one folder, and the development kit unpacked."""
    _write_train(root / "train")
    (root / "val").mkdir()
    for name in val_names():
        (root / "val" / name).write_bytes(image(name))
    for name, content in devkit_files().items():
        path = root / "ILSVRC2012_devkit_t12" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def write_huggingface(root: Path) -> None:
    """As "ILSVRC/imagenet-1k" has them: shards in data/, rows in a random order, names that end in the wnid."""
    names = train_names()
    rows = [
        (f"{name.removesuffix('.JPEG')}_{name[:9]}.JPEG", image(name), WNIDS.index(name[:9]))
        for name in names
    ]
    shuffled = [rows[k] for k in np.random.default_rng(1).permutation(len(rows))]
    folder = root / "data"
    folder.mkdir()
    for k in range(2):
        half = shuffled[k * len(rows) // 2 : (k + 1) * len(rows) // 2]
        write_parquet(folder / f"train-0000{k}-of-00002.parquet", half)
    val = [
        (f"{name.removesuffix('.JPEG')}_{wnid}.JPEG", image(name), WNIDS.index(wnid))
        for name, wnid in zip(val_names(), val_wnids(), strict=True)
    ]
    write_parquet(folder / "validation-00000-of-00001.parquet", val)


def write_parquet(
    path: Path, rows: list[tuple[str | None, bytes | None, int | None]], group: int = 4
) -> None:
    """A shard of Hugging Face's: path, bytes and label of each row."""
    features = {
        "image": {"_type": "Image"},
        "label": {"names": [TITLES[wnid] for wnid in WNIDS], "_type": "ClassLabel"},
    }
    images = pa.array(
        [{"bytes": content, "path": name} for name, content, _ in rows],
        pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
    )
    table = pa.table({"image": images, "label": pa.array([label for *_, label in rows], pa.int64())})
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    parquet.write_table(table.replace_schema_metadata(metadata), path, row_group_size=group)


def _write_train(folder: Path) -> None:
    for name in train_names():
        (folder / name[:9]).mkdir(parents=True, exist_ok=True)
        (folder / name[:9] / name).write_bytes(image(name))


LAYOUTS: dict[str, Callable[[Path], None]] = {
    "archives": write_archives,
    "kaggle": write_kaggle,
    "folders": write_folders,
    "flat": write_flat,
    "huggingface": write_huggingface,
}


def write_layout(name: str, root: Path) -> Path:
    """Write ImageNet in one of `LAYOUTS`; returns the folder."""
    root.mkdir(parents=True)
    LAYOUTS[name](root)
    return root


if __name__ == "__main__":
    for layout in LAYOUTS:
        print(write_layout(layout, Path(sys.argv[1]) / layout))
