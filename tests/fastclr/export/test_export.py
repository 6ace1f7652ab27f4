"""fastclr export: each library loads what is written, and its features are those of the encoder, on real photos."""

import json
import sys
from pathlib import Path

import pytest
import torch
from support.other_encoders import stir, torchvision_resnet, with_prefix
from torch import Tensor, nn

from fastclr.cli.main import main
from fastclr.evaluate import extract_features
from fastclr.model import make_encoder, resnet
from fastclr.train.checkpoint import export_encoder
from pipelines import BetonReader, TwoViewLoader, ViewSpec

SIZE, COUNT = 96, 24
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)
IMAGES = {"size": SIZE, "mean": MEAN, "std": STD}


@pytest.fixture(scope="module")
def photos(photo_beton) -> TwoViewLoader:
    spec = ViewSpec.center(SIZE, mean=MEAN, std=STD)
    with TwoViewLoader(
        photo_beton, COUNT, views=spec, order="sequential", indices=range(COUNT), num_threads=1
    ) as loader:
        yield loader


def write_run(folder: Path, **kwargs) -> nn.Module:
    """A run folder with an encoder of random weights."""
    torch.manual_seed(0)
    kwargs = {"depth": 18, "width": 1.0, "stem": "imagenet", "sk_ratio": 0.0, **kwargs}
    encoder = stir(resnet(**kwargs))
    folder.mkdir()
    export_encoder(folder / "encoder.safetensors", encoder, {"encoder": "resnet", "kwargs": kwargs, **IMAGES})
    return encoder


@pytest.fixture
def run(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "run")
    return tmp_path / "run"


def export(run: Path | str, *arguments: str) -> int:
    return main(["export", str(run), *arguments])


def printed_code(capsys) -> str:
    return "\n".join(line.strip() for line in capsys.readouterr().out.splitlines() if line.startswith("    "))


def opened(code: str) -> nn.Module:
    """The model that the printed lines make."""
    names: dict = {}
    exec(f"import safetensors.torch, timm, torch, torchvision\n{code}", names)
    return names["model"].eval()


def features(encoder: nn.Module, photos: TwoViewLoader) -> Tensor:
    photos.set_epoch(0)
    return extract_features(encoder, photos)[0]


def ours(run: Path, photos: TwoViewLoader) -> Tensor:
    from fastclr import load_encoder

    found = features(load_encoder(run)[0], photos)
    assert found.shape == (COUNT, 512)
    assert found.std(0).mean() > 1e-3
    return found


@pytest.mark.parametrize(
    ("to", "out"),
    [("torchvision", "w.pth"), ("torchvision", "w.safetensors"), ("timm", "w.pt"), ("timm", "w.safetensors")],
)
def test_weights_load_strictly(to, out, run, photos, capsys, require_package):
    require_package("timm")
    assert export(run, "--to", to, out) == 0
    model = opened(printed_code(capsys))
    assert type(model).__module__.startswith(to)
    torch.testing.assert_close(features(model, photos), ours(run, photos), rtol=0, atol=1e-5)


@pytest.mark.parametrize("to", ["torchvision", "timm"])
def test_a_classifier_of_zeros(to, run, photos, capsys, require_package):
    require_package("timm")
    assert export(run, "--to", to, "w.pth", "--classes", "7") == 0
    model = opened(printed_code(capsys))
    scores = features(model, photos)
    assert scores.shape == (COUNT, 7)
    assert not scores.any()
    model.fc = nn.Identity()
    torch.testing.assert_close(features(model, photos), ours(run, photos), rtol=0, atol=1e-5)


def session(path: str):
    import onnxruntime

    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


@pytest.mark.slow
def test_onnx(run, photos, capsys, require_package):
    require_package("onnxruntime")
    assert export(run, "--to", "onnx", "w.onnx") == 0
    program = session("w.onnx")
    (batch,) = photos
    expected = ours(run, photos)
    for count in (1, 5, COUNT):  # a batch of any size
        (found,) = program.run(None, {"images": batch.views[0][:count].contiguous().numpy()})
        torch.testing.assert_close(torch.from_numpy(found), expected[:count], rtol=0, atol=1e-4)
    stored = {k: json.loads(v) for k, v in program.get_modelmeta().custom_metadata_map.items()}
    assert (stored["size"], stored["mean"], stored["std"]) == (SIZE, list(MEAN), list(STD))
    assert stored["center_crop_fraction"] == 0.875
    assert "antialiased" in stored["preprocessing"]
    assert printed_code(capsys).startswith("session = onnxruntime.InferenceSession('w.onnx')")


@pytest.mark.slow
def test_onnx_with_preprocessing(run, photos, photo_beton, require_package):
    """From decoded photos of any size: the pixels are within a gray level of the loader's."""
    require_package("onnxruntime")
    assert export(run, "--to", "onnx", "w.onnx", "--with-preprocessing") == 0
    program, expected = session("w.onnx"), ours(run, photos)
    sizes, worst = set(), 0.0
    with BetonReader(photo_beton) as reader:
        for index in range(COUNT):
            pixels = reader[index][0]
            sizes.add(pixels.shape)
            (found,) = program.run(None, {"images": pixels[None]})
            error = (torch.from_numpy(found[0]) - expected[index]).abs().max()
            worst = max(worst, float(error / expected[index].abs().max()))
    assert worst < 5e-3
    assert len(sizes) > 5


@pytest.mark.slow
def test_the_preprocessing_of_small_and_odd_images(tmp_path, require_package):
    """Against torch: images smaller than the view, and of odd sides."""
    require_package("onnxruntime")
    from fastclr.export import export as write
    from fastclr.export.formats import Options

    encoder = nn.Flatten()
    for size in (20, 33):
        meta = {"encoder": "flat", "kwargs": {}, "size": size, "mean": MEAN, "std": STD}
        write(encoder, meta, "onnx", tmp_path / "w.onnx", Options(with_preprocessing=True))
        fraction = 0.875 if size > 32 else 1.0
        for height, width in ((21, 30), (64, 51), (1, 9), (333, 200)):
            pixels = torch.randint(256, (2, height, width, 3), dtype=torch.uint8)
            side = max(round(fraction * min(height, width)), 1)
            top, left = (height - side) // 2, (width - side) // 2
            square = pixels[:, top : top + side, left : left + side].permute(0, 3, 1, 2).float()
            square = torch.nn.functional.interpolate(square, (size, size), mode="bilinear", antialias=True)
            (found,) = session(str(tmp_path / "w.onnx")).run(None, {"images": pixels.numpy()})
            mean, std = (torch.tensor(c).view(3, 1, 1) for c in (MEAN, STD))
            levels = (torch.from_numpy(found).view(2, 3, size, size) * std + mean) * 255
            assert (levels - square.round()).abs().max() < 1.01
            assert (levels - square.round()).abs().gt(0.5).float().mean() < 1e-3


def test_torchscript(run, photos):
    assert export(run, "--to", "torchscript", "w.pt") == 0
    stored = {"fastclr.json": ""}
    program = torch.jit.load("w.pt", _extra_files=stored)
    torch.testing.assert_close(features(program, photos), ours(run, photos), rtol=0, atol=1e-4)
    assert json.loads(stored["fastclr.json"])["mean"] == list(MEAN)


def test_huggingface(run, photos, capsys, require_package):
    timm = require_package("timm")
    (run / "config.toml").write_text("# file: /data/private/photos.beton\n\n[views]\nsize = 96\n")
    record = {
        "knn": {"top1": 0.4321},
        "linear": {"top1": 0.5},
        "train": {"file": "/x/train.beton", "samples": 1234, "fingerprint": "ab"},
    }
    (run / "evaluate.json").write_text(json.dumps(record))
    assert export(run, "--to", "huggingface", "folder", "--license", "apache-2.0") == 0
    model = opened(printed_code(capsys))
    torch.testing.assert_close(features(model, photos), ours(run, photos), rtol=0, atol=1e-5)
    images = timm.data.resolve_model_data_config(model)
    assert tuple(list(images[key]) for key in ("input_size", "mean", "std")) == (
        [3, SIZE, SIZE],
        list(MEAN),
        list(STD),
    )
    assert (images["crop_pct"], images["interpolation"]) == (0.875, "bilinear")

    card = Path("folder/README.md").read_text()
    assert card.startswith("---\nlicense: apache-2.0\n")
    for text in (
        "resnet18",
        "`photos.beton`",
        "| weighted kNN | 43.21% |",
        "| linear probe | 50.00% |",
        "1,234 images",
    ):
        assert text in card
    assert "[views]\nsize = 96" in card
    # again, in place
    assert export(run, "--to", "huggingface", "folder", "--classes", "3") == 0
    model = timm.create_model("local-dir:folder", pretrained=True).eval()
    assert model(torch.zeros(1, 3, SIZE, SIZE)).tolist() == [[0.0] * 3]
    assert Path("folder/README.md").read_text().startswith("---\nlicense: unknown\n")
    Path("folder/thesis.tex").write_text("mine")
    assert export(run, "--to", "huggingface", "folder") == 2
    assert "thesis.tex" in capsys.readouterr().err


def test_a_run_without_record_has_a_card(run, require_package):
    require_package("timm")
    assert export(run, "--to", "huggingface", "folder") == 0
    card = Path("folder/README.md").read_text()
    assert "Not evaluated." in card
    assert card.count("Not recorded.") == 2


@pytest.mark.parametrize(
    ("name", "size", "to"),
    [
        ("timm:vit_tiny_patch16_224", 32, "timm"),
        ("timm:vit_tiny_patch16_224", 32, "huggingface"),
        ("torchvision:mobilenet_v3_small", 32, "torchvision"),
        ("torchvision:resnet18", 32, "timm"),
        ("timm:resnet18", 32, "torchvision"),
        ("resnet", 64, "timm"),
    ],
)
def test_other_encoders(name, size, to, tmp_path, monkeypatch, capsys, require_package):
    timm = require_package("timm")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    kwargs = (
        {"size": size}
        if name != "resnet"
        else {"depth": 10, "width": 1.0, "stem": "imagenet", "sk_ratio": 0.0}
    )
    encoder = make_encoder(name, **kwargs).eval()
    export_encoder(
        tmp_path / "encoder.safetensors", encoder, {"encoder": name, "kwargs": kwargs, **IMAGES, "size": size}
    )
    out = "folder" if to == "huggingface" else "w.pth"
    assert export("encoder.safetensors", "--to", to, out) == 0
    code = printed_code(capsys)
    if name == "torchvision:mobilenet_v3_small":
        from torchvision.models import mobilenet_v3_small

        model = mobilenet_v3_small()
        model.classifier[3] = nn.Identity()
        model.load_state_dict(torch.load(out), strict=True)
    else:
        model = opened(code)
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(images), encoder(images), rtol=0, atol=1e-5)
    assert timm is not None


def test_another_projects_checkpoint(tmp_path, monkeypatch, capsys, require_package):
    """MoCo's file becomes timm's."""
    require_package("timm")
    monkeypatch.chdir(tmp_path)
    model = torchvision_resnet("resnet18")
    torch.save({"state_dict": with_prefix("module.encoder_q.", model)}, "moco.pth.tar")
    assert export("moco.pth.tar", "--to", "timm", "w.pth", "--size", "64") == 0
    theirs = opened(printed_code(capsys))
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(theirs(images), model(images))


LACKING = {
    "cifar": ({"stem": "cifar"}, ("CIFAR stem",)),
    "stride2": ({"stem": "stride2"}, ("stem of stride 2",)),
    "width": ({"width": 0.5}, ("width 0.5",)),
    "short": ({"depth": 10, "stages": 3, "stem": "whitened"}, ("whitened stem", "3 stages")),
    "selective": ({"depth": 50, "sk_ratio": 0.0625, "width": 0.125}, ("width 0.125", "selective kernels")),
    "depth": ({"depth": 10}, ("depth 10",)),
}


@pytest.mark.parametrize("to", ["torchvision", "timm", "huggingface"])
@pytest.mark.parametrize("what", LACKING)
def test_parts_without_counterpart_are_named(what, to, tmp_path, capsys, require_package):
    require_package("timm")
    kwargs, parts = LACKING[what]
    write_run(tmp_path / "run", **kwargs)
    out = tmp_path / ("folder" if to == "huggingface" else "w.pth")
    if what == "depth" and to != "torchvision":
        assert export(tmp_path / "run", "--to", to, str(out)) == 0  # timm's ResNet takes its layers
        return
    assert export(tmp_path / "run", "--to", to, str(out)) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert all(part in error for part in parts)
    assert not out.exists()


@pytest.mark.slow
@pytest.mark.parametrize("what", ["cifar", "selective"])
def test_programs_have_every_part(what, tmp_path, require_package):
    require_package("onnxruntime")
    kwargs, _ = LACKING[what]
    encoder = write_run(tmp_path / "run", **kwargs)
    images = torch.randn(3, 3, SIZE, SIZE)
    assert export(tmp_path / "run", "--to", "onnx", str(tmp_path / "w.onnx")) == 0
    assert export(tmp_path / "run", "--to", "torchscript", str(tmp_path / "w.pt")) == 0
    with torch.no_grad():
        expected = encoder(images)
    (found,) = session(str(tmp_path / "w.onnx")).run(None, {"images": images.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(torch.jit.load(tmp_path / "w.pt")(images), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--to", "onnx", "w.pth"), "w.pth should end in .onnx"),
        (("--to", "timm", "w"), "w should end in .pth or .pt or .safetensors"),
        (("--to", "onnx", "w.onnx", "--classes", "3"), "--classes has no effect with --to onnx"),
        (("--to", "timm", "w.pth", "--with-preprocessing"), "--with-preprocessing has no effect"),
        (("--to", "timm", "w.pth", "--license", "mit"), "--license has no effect"),
        (("--to", "timm", "w.pth", "--classes", "-1"), "--classes is -1"),
        (("--to", "timm", "nowhere/w.pth"), "nowhere/w.pth"),
        (("--to", "huggingface", "run/encoder.safetensors"), "encoder.safetensors"),
    ],
)
def test_mistakes_get_one_line(arguments, message, run, capsys, require_package):
    require_package("timm")
    before = (run / "encoder.safetensors").read_bytes()
    assert export(run, *arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error
    assert (run / "encoder.safetensors").read_bytes() == before
    assert not Path(arguments[2]).exists() or arguments[2].startswith("run")


@pytest.mark.parametrize("package", ["onnx", "onnxruntime", "onnxscript"])
def test_a_missing_package(package, run, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    assert export(run, "--to", "onnx", "w.onnx") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "pip install 'fastclr[export]'" in error
