"""Every command in the table of docs/convert.md runs, on small sets of the kind that it names."""

import glob
import re
import shlex
import shutil
import zipfile
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import scipy.io
from support.imagenet_sets import image, tar_of, write_layout
from torchvision import datasets

from fastclr.cli.main import main
from pipelines.beton import BetonReader

PAGE = (Path(__file__).parents[3] / "docs" / "convert.md").read_text(encoding="utf-8")
TABLE = PAGE.partition("## Sources")[2].partition("\nPatterns are expanded")[0]
COMMANDS = re.findall(r"`(fastclr convert [^`]*)`", TABLE)


def pairs(k: int, names: list[str]) -> bytes:
    """A shard of WebDataset whose labels are in `.cls` and in `.json` files."""
    files: dict[str, bytes] = {}
    for n, name in enumerate(names):
        files |= {f"{n}.jpg": image(f"{k}{n}"), f"{n}.cls": b"%d" % n}
        files[f"{n}.json"] = b'{"fine_label": "%s"}' % name.encode()
    return tar_of(files)


@pytest.fixture
def sets(tmp_path, monkeypatch) -> Path:
    """A folder with a small set for every command."""
    monkeypatch.chdir(tmp_path)
    for name in ("photos/train/cat/1.jpg", "photos/train/dog/2.jpg", "snapshots/1.jpg", "snapshots/2.jpg"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(image(name))
    write_layout("archives", Path("DIR"))
    for wnid in ("n01440764", "n02123045"):
        Path(f"{wnid}.tar").write_bytes(tar_of({f"{wnid}_1.JPEG": image(wnid)}))
    Path("train.tar").write_bytes(
        tar_of({f"{c}.tar": tar_of({f"{c}1.jpg": image(c)}) for c in ("cat", "dog")})
    )
    for k in range(147):
        Path(f"train-{k:03}.tar").write_bytes(pairs(k, ["cat", "dog"] if k else ["dog", "cat"]))
        fsspec.filesystem("memory").pipe(f"/bucket/train-{k:03}.tar", Path(f"train-{k:03}.tar").read_bytes())
    for name in ("photos", "more"):
        with zipfile.ZipFile(f"{name}.zip", "w") as archive:
            for animal in ("cat", "eel"):
                archive.writestr(f"{animal}/1.jpg", image(animal))
    Path("data").mkdir()
    rows = {"img": [image("1"), image("2")], "fine_label": ["cat", "dog"]}
    parquet.write_table(pa.table(rows), "data/train-00000.parquet")
    kaggle = write_layout("kaggle", Path("kaggle"))
    shutil.copytree(kaggle / "ILSVRC" / "Data" / "CLS-LOC" / "val", "images")
    shutil.copy(kaggle / "LOC_val_solution.csv", ".")
    (Path("DIR") / "flowers-102" / "jpg").mkdir(parents=True)
    for k in range(1, 5):
        (Path("DIR") / "flowers-102" / "jpg" / f"image_{k:05}.jpg").write_bytes(image(str(k)))
    scipy.io.savemat("DIR/flowers-102/imagelabels.mat", {"labels": np.array([[1, 2, 1, 2]])})
    scipy.io.savemat("DIR/flowers-102/setid.mat", {"trnid": [[1, 2]], "valid": [[3, 4]], "tstid": [[3, 4]]})
    monkeypatch.setattr(datasets.Flowers102, "_check_integrity", lambda self: True)
    yield tmp_path
    fsspec.filesystem("memory").rm("/bucket", recursive=True)


def test_the_table_has_all_sources():
    assert len(COMMANDS) == TABLE.count("\n| ") - 1 == 15


@pytest.mark.slow
def test_the_commands_run(sets, capsys):
    """In the order of the table; s3:// is played by fsspec's memory, and CIFAR-10 by what its own test covers."""
    written = {}
    for command in COMMANDS:
        if "cifar10:" in command:
            continue
        words = shlex.split(command.replace("s3://", "memory://"))[1:]
        # what a shell does with a pattern that is not in quotes
        words = [
            match for word in words for match in (sorted(glob.glob(word)) if word == "n*.tar" else [word])
        ]
        if "DIR" in words:  # where the table has another folder for each set
            words[words.index("DIR")] = "data"
        assert main([*words, "--overwrite"]) == 0, (command, capsys.readouterr().err)
        (out,) = [word for word in words if word.endswith(".beton")]
        with BetonReader(out) as reader:
            written[command] = (len(reader), reader.class_names)
    counts = [count for count, _ in written.values()]
    assert counts == [2, 2, 12, 2, 2, 294, 294, 2, 2, 2, 2, 10, 4, 294]
    named = [names for _, names in written.values()]
    assert named[0] == named[4] == named[6] == named[8] == ["cat", "dog"]
    assert named[12] == ["cat", "dog", "eel"]
