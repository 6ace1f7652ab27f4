"""Writes an encoder for other libraries: `fastclr export RUN --to FORMAT OUT`."""

import io
import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as safetensors_bytes
from torch import Tensor, nn

from fastclr.export.counterparts import check_equal, counterpart, random_images, transfer
from fastclr.export.huggingface import write_folder
from fastclr.export.onnx_graph import write_onnx
from fastclr.train.checkpoint import atomic_write
from pipelines import ViewSpec

TOLERANCE = 1e-4
"""Largest difference of features between the encoder and its program, relative to the largest feature."""


@dataclass(frozen=True)
class Options:
    """What only some formats take."""

    num_classes: int | None = None
    """Add a classifier of zeros with this many outputs: torchvision, timm, huggingface."""
    with_preprocessing: bool = False
    """The graph takes uint8 images of any size: onnx."""
    license: str | None = None
    """Licence in the model card: huggingface."""
    run: Path | None = None
    """Run folder, whose recipe and accuracies the model card shows: huggingface."""


def export(
    encoder: nn.Module, meta: Mapping[str, Any], to: str, out: Path, options: Options = Options()
) -> str:
    """Write an encoder for another library, after comparing what it computes there.

    Args:
        encoder: in evaluation mode on the CPU, with its metadata, as `open_encoder` returns them.
        meta: its metadata.
        to: a key of FORMATS.
        out: the file, or for huggingface the folder, to write.
        options: what only some formats take.

    Returns:
        Lines of Python that open the result, for the user.

    Raises:
        ValueError: parts of the encoder have no counterpart, an option or a file name that the format does not take, a
            missing package, or features that differ.
        OSError: the file can't be written.
    """
    if to not in FORMATS:
        raise ValueError(f"format {to!r} is unknown; there are {', '.join(FORMATS)}")
    write, suffixes, takes = FORMATS[to]
    for name in ("num_classes", "with_preprocessing", "license"):
        if getattr(options, name) and name not in takes:
            flag = {"num_classes": "classes"}.get(name, name).replace("_", "-")
            raise ValueError(f"--{flag} has no effect with --to {to}; leave it out")
    if options.num_classes is not None and options.num_classes < 1:
        raise ValueError(f"--classes is {options.num_classes}; it must be at least 1")
    if suffixes and out.suffix not in suffixes:
        raise ValueError(f"{out} should end in {' or '.join(suffixes)} with --to {to}")
    return write(encoder, meta, out, options)


def image_metadata(meta: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a user of the exported encoder must know to make its images, of JSON's types."""
    return {
        "encoder": meta["encoder"],
        "kwargs": meta["kwargs"],
        "size": meta["size"],
        "mean": list(meta["mean"]),
        "std": list(meta["std"]),
        "center_crop_fraction": ViewSpec.center(meta["size"]).center_crop_fraction,
        "preprocessing": "RGB; the centred square of that fraction of the shorter side, resized to size (bilinear, "
        "antialiased); divided by 255; minus mean, divided by std",
    }


def _to_library(library: str) -> Callable[[nn.Module, Mapping[str, Any], Path, Options], str]:
    def write(encoder: nn.Module, meta: Mapping[str, Any], out: Path, options: Options) -> str:
        target = counterpart(meta, library)
        state = transfer(encoder, target, meta["size"], options.num_classes)
        _write_weights(out, state, meta)
        return target.code(options.num_classes, f"{out}")

    return write


def _write_weights(out: Path, state: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    with atomic_write(out) as file:
        if out.suffix == ".safetensors":
            images = {
                key: json.dumps(value) for key, value in image_metadata(meta).items() if key != "encoder"
            }
            weights = {name: tensor.contiguous() for name, tensor in state.items()}
            file.write(safetensors_bytes(weights, {"format": "pt", **images}))
        else:
            torch.save(dict(state), file)


def _to_onnx(encoder: nn.Module, meta: Mapping[str, Any], out: Path, options: Options) -> str:
    program = write_onnx(encoder, image_metadata(meta), out, options.with_preprocessing, TOLERANCE)
    session = f"session = onnxruntime.InferenceSession({str(out)!r})"
    return f"{session}\nfeatures = session.run(None, {{'images': images}})[0]  # images: {program}"


def _to_torchscript(encoder: nn.Module, meta: Mapping[str, Any], out: Path, options: Options) -> str:
    with warnings.catch_warnings():
        # TorchScript is deprecated, and asked for: there are programs that read nothing else
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter(
            "ignore", torch.jit.TracerWarning
        )  # the number of selective kernels' streams is fixed
        traced = torch.jit.trace(encoder, random_images(2, meta["size"]))
        data = io.BytesIO()
        torch.jit.save(traced, data, _extra_files={"fastclr.json": json.dumps(image_metadata(meta))})
        loaded = torch.jit.load(io.BytesIO(data.getvalue()))
    images = random_images(3, meta["size"])  # another batch size than the traced one
    with torch.no_grad():
        check_equal(loaded(images), encoder(images), TOLERANCE, "the TorchScript program")
    with atomic_write(out) as file:
        file.write(data.getvalue())
    return f"model = torch.jit.load({str(out)!r})"


def _to_huggingface(encoder: nn.Module, meta: Mapping[str, Any], out: Path, options: Options) -> str:
    target = counterpart(meta, "timm")
    state = transfer(encoder, target, meta["size"], options.num_classes)
    write_folder(out, target, state, image_metadata(meta), options.num_classes, options.license, options.run)
    return f"model = timm.create_model({f'local-dir:{out}'!r}, pretrained=True)"


FORMATS: dict[str, tuple[Callable[..., str], tuple[str, ...], tuple[str, ...]]] = {
    "torchvision": (_to_library("torchvision"), (".pth", ".pt", ".safetensors"), ("num_classes",)),
    "timm": (_to_library("timm"), (".pth", ".pt", ".safetensors"), ("num_classes",)),
    "onnx": (_to_onnx, (".onnx",), ("with_preprocessing",)),
    "torchscript": (_to_torchscript, (".pt", ".pth", ".torchscript"), ()),
    "huggingface": (_to_huggingface, (), ("num_classes", "license")),
}
"""By name: what writes it, the suffixes of its file, and the options that it takes."""
