"""fastclr embed: features by a second way to them, the same bytes after a kill, and the user's mistakes."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from support.other_encoders import stir
from support.tiny_run import write_tiny_file

from fastclr.cli.main import main
from fastclr.evaluate import extract_features
from fastclr.model import resnet
from fastclr.train.checkpoint import export_encoder, load_encoder
from pipelines import BetonReader, TwoViewLoader, ViewSpec
from pipelines.beton import BetonWriter
from pipelines.convert import convert, open_source
from pipelines.convert.names_file import read_names

IMAGES = {"size": 16, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.25]}


def write_run(folder: Path, width: float = 0.125, size: int = 16) -> Path:
    torch.manual_seed(0)
    kwargs = {"depth": 10, "width": width, "stem": "cifar", "sk_ratio": 0.0}
    folder.mkdir()
    meta = {"encoder": "resnet", "kwargs": kwargs, **IMAGES, "size": size, "step": 20}
    export_encoder(folder / "encoder.safetensors", stir(resnet(**kwargs)), meta)
    return folder


@pytest.fixture
def run(tmp_path) -> Path:
    return write_run(tmp_path / "run")


@pytest.fixture(scope="module")
def photos(tiny_photos, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("embed") / "photos.beton"
    convert(open_source([str(tiny_photos)]), out, workers=1)
    return out


def embed(run: Path, *arguments: str | Path) -> int:
    options = ("--device", "cpu", "--precision", "float32", "--threads", "1")
    return main(["embed", str(run), *map(str, arguments), *options])


def by_hand(run: Path, files) -> tuple[np.ndarray, np.ndarray]:
    encoder, meta = load_encoder(run)
    spec = ViewSpec.center(meta["size"], mean=tuple(meta["mean"]), std=tuple(meta["std"]))
    with TwoViewLoader(files, 8, views=spec, order="sequential", drop_last=False, num_threads=1) as loader:
        features, labels = extract_features(encoder, loader)
    return features.numpy(), labels.numpy()


def test_npz(run, photos, tmp_path, capsys):
    assert embed(run, photos, "--out", tmp_path / "f.npz", "--batch-size", "16") == 0
    assert "40 images, 64 features: written to" in capsys.readouterr().out
    found = np.load(tmp_path / "f.npz")  # without pickle
    features, labels = by_hand(run, photos)
    np.testing.assert_allclose(found["features"], features, rtol=1e-5, atol=1e-6)
    assert found["features"].dtype == np.float32
    assert found["features"].std(0).mean() > 1e-3
    assert found["labels"].tolist() == labels.tolist()
    assert found["indices"].tolist() == list(range(40))
    assert found["names"].tolist() == read_names(photos)
    assert found["class_names"].tolist() == [f"class-{k}" for k in range(4)]
    meta = json.loads(str(found["meta"]))
    assert (meta["encoder"], meta["size"], meta["step"], meta["mean"]) == ("resnet", 16, 20, IMAGES["mean"])
    with BetonReader(photos) as reader:
        assert meta["data"] == reader.fingerprint
    assert not list(tmp_path.glob(".*"))


def test_parquet_holds_the_same(run, photos, tmp_path, require_package):
    parquet = require_package("pyarrow.parquet")
    for name in ("f.npz", "f.parquet"):
        assert embed(run, photos, "--out", tmp_path / name) == 0
    found, table = np.load(tmp_path / "f.npz"), parquet.read_table(tmp_path / "f.parquet")
    assert table.column_names == ["features", "label", "index", "name"]
    assert np.array_equal(np.stack(table["features"].to_numpy()), found["features"])
    assert table["label"].to_pylist() == found["labels"].tolist()
    assert table["index"].to_pylist() == found["indices"].tolist()
    assert table["name"].to_pylist() == found["names"].tolist()
    metadata = {key.decode(): json.loads(value) for key, value in table.schema.metadata.items()}
    assert metadata["class_names"] == found["class_names"].tolist()
    assert metadata["meta"] == json.loads(str(found["meta"]))


def test_parts(run, photos, tmp_path, monkeypatch, require_package):
    """A file larger than what is in memory at a time."""
    parquet = require_package("pyarrow.parquet")
    assert embed(run, photos, "--out", tmp_path / "one.npz") == 0
    monkeypatch.setattr("fastclr.evaluate.feature_files.PART_ROWS", 7)  # does not divide 40
    assert embed(run, photos, "--out", tmp_path / "parts.npz") == 0
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "parts.npz").read_bytes()
    assert embed(run, photos, "--out", tmp_path / "parts.parquet") == 0
    assert parquet.ParquetFile(tmp_path / "parts.parquet").num_row_groups == 6
    assert parquet.read_table(tmp_path / "parts.parquet")["name"].to_pylist() == read_names(photos)


def test_several_files_are_one_set(run, photos, tmp_path, capsys):
    other = write_tiny_file(tmp_path / "other.beton", 21)
    assert embed(run, photos, other, "--out", tmp_path / "f.npz") == 0
    found = np.load(tmp_path / "f.npz")
    features, labels = by_hand(run, [photos, other])
    np.testing.assert_allclose(found["features"], features, rtol=1e-5, atol=1e-6)
    assert found["labels"].tolist() == labels.tolist()
    assert len(found["features"]) == 61
    assert "names" not in found
    assert "no names" in capsys.readouterr().out


def test_names_of_other_images_are_not_taken(run, photos, tmp_path, capsys):
    beton = tmp_path / "photos.beton"
    beton.write_bytes(photos.read_bytes())
    names = photos.with_suffix(".names").read_text()
    for content in (names + "one more\n", names.replace("\n", "", 1), ""):
        beton.with_suffix(".names").write_text(content)
        assert embed(run, beton, "--out", tmp_path / "f.npz") == 0
        assert "names" not in np.load(tmp_path / "f.npz")


def test_corrupt_images_are_left_out(run, tmp_path, capsys, photos):
    broken = tmp_path / "broken.beton"
    with BetonReader(photos) as reader:
        data = bytearray(photos.read_bytes())
        start = int(reader.offsets[5])
        data[start + 2 : start + 40] = b"\0" * 38  # a header that no decoder reads
    broken.write_bytes(data)
    with pytest.warns(match="sample 5"):
        assert embed(run, broken, "--out", tmp_path / "f.npz", "--batch-size", "8") == 0
    found, kept = np.load(tmp_path / "f.npz"), [i for i in range(40) if i != 5]
    assert "39 images, 64 features; 1 corrupt ones are left out" in capsys.readouterr().out
    assert found["indices"].tolist() == kept
    np.testing.assert_allclose(found["features"], by_hand(run, photos)[0][kept], rtol=1e-5, atol=1e-6)


KILLED = """
import sys
from fastclr.cli.main import main
from fastclr.evaluate import feature_store
feature_store.SAVE_INTERVAL_S = 0.05
main(sys.argv[1:])
"""


def write_noise(path: Path, count: int) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    with BetonWriter(path, count) as writer:
        for number, image in enumerate(pixels):
            writer.add_raw(image, label=number % 7)
    path.with_suffix(".names").write_text("".join(f"image {n}\n" for n in range(count)))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
def test_killed_and_continued_the_bytes_are_the_same(suffix, tmp_path, capsys, require_package):
    require_package("pyarrow")
    run = write_run(tmp_path / "run", width=0.25, size=32)
    file, out, whole = (
        write_noise(tmp_path / "noise.beton", 1200),
        tmp_path / f"a{suffix}",
        tmp_path / f"b{suffix}",
    )
    options = ("--batch-size", "8")
    assert embed(run, file, "--out", whole, *options) == 0
    state = tmp_path / f".{out.name}.partial" / "state.json"
    arguments = ["embed", run, file, "--out", out, *options, "--device", "cpu", "--precision", "float32"]
    command = [sys.executable, "-c", KILLED, *map(str, arguments), "--threads", "1"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not state.exists():
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not out.exists()
    rows = json.loads(state.read_bytes())["rows"]
    assert 0 < rows < 1200
    # bytes beyond those that the state counts, as a killed write leaves them
    with open(state.parent / "features.f32", "ab") as rest:
        rest.write(b"\1\2\3")
    capsys.readouterr()
    assert embed(run, file, "--out", out, *options) == 0
    assert f"continued at image {rows:,}" in capsys.readouterr().out
    assert out.read_bytes() == whole.read_bytes()
    assert not state.parent.exists()


def test_an_unfinished_file_of_another_encoder_is_replaced(run, photos, tmp_path, capsys):
    folder = tmp_path / ".f.npz.partial"
    folder.mkdir()
    (folder / "features.f32").write_bytes(b"\0" * 4 * 64 * 16)
    for state in ({"rows": 16, "width": 64, "format": "fastclr features 1", "identity": {}}, [], None):
        (folder / "state.json").write_text(json.dumps(state))
        assert embed(run, photos, "--out", tmp_path / "f.npz") == 0
        assert "continued" not in capsys.readouterr().out
        np.testing.assert_allclose(
            np.load(tmp_path / "f.npz")["features"], by_hand(run, photos)[0], rtol=1e-5, atol=1e-6
        )
        folder.mkdir()
        (folder / "features.f32").write_bytes(b"\0" * 4 * 64 * 16)


def test_two_processes_of_one_result(run, photos, tmp_path, capsys):
    import fcntl

    folder = tmp_path / ".f.npz.partial"
    folder.mkdir()
    with open(folder / "features.f32", "wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert embed(run, photos, "--out", tmp_path / "f.npz") == 2
    error = capsys.readouterr().err
    assert "another process" in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--out", "f.csv"), "f.csv; it should end in .npz or .parquet"),
        (("--out", "f.npz", "--batch-size", "0"), "--batch-size is 0"),
        (("--out", "nowhere/f.npz"), "nowhere"),
        (("--out", "f.npz", "--size", "-3"), "size is -3"),
    ],
)
def test_mistakes_get_one_line(arguments, message, run, photos, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert embed(run, photos, *arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error
    assert not list(tmp_path.glob("*f.*"))


def test_features_that_are_not_finite(run, photos, tmp_path, capsys):
    encoder, meta = load_encoder(run)
    torch.nn.init.constant_(encoder.bn1.weight, torch.nan)
    export_encoder(run / "encoder.safetensors", encoder, meta)
    assert embed(run, photos, "--out", tmp_path / "f.npz") == 2
    assert "not finite" in capsys.readouterr().err
    assert not (tmp_path / "f.npz").exists()


def test_parquet_without_pyarrow(run, photos, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    assert embed(run, photos, "--out", tmp_path / "f.parquet") == 2
    assert "pip install 'fastclr[parquet]'" in capsys.readouterr().err
