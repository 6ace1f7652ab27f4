"""Opens an encoder, ours or another project's: what every command takes in place of RUN."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from fastclr.export.found import find_resnet
from fastclr.export.published import FAMILIES, published_encoder
from fastclr.export.tensors_file import read_metadata, read_tensors
from fastclr.model import check_image_size
from fastclr.train.encoder_file import CHECKSUM, RESNET_KEYS, load_encoder
from pipelines.views.spec import IMAGENET_MEAN, IMAGENET_STD, ViewSpec

Triple = tuple[float, float, float]
SIZES = {"imagenet": 224, "cifar": 32}
"""Pixels of an image by the stem, where a file does not say."""


def open_encoder(
    source: str | Path,
    *,
    size: int | None = None,
    mean: Triple | None = None,
    std: Triple | None = None,
    note: Callable[[str], None] = print,
) -> tuple[nn.Module, dict[str, Any]]:
    """Open an encoder by a run, a file of any project, or the name of a published model.

    Args:
        source: a run folder; an `encoder.safetensors`; a .pth, .ckpt or .safetensors that holds a ResNet of
            torchvision, timm, lightly, solo-learn, VISSL or MMSelfSup, or one converted from the authors' TensorFlow
            checkpoints; or torchvision:NAME or timm:NAME, with their published weights.
        size: pixels of an image; None: as the source says, or else 224, and 32 for a 3×3 stem.
        mean, std: normalisation per channel, on a scale of [0, 1]; None: as the source says, or else ImageNet's, and
            0 and 1 for converted TensorFlow checkpoints, which were trained without.
        note: receives a line about what was found in another project's file, what was dropped, and what was assumed.

    Returns:
        The encoder, in evaluation mode on the CPU, and its metadata: encoder, kwargs, size, mean, std (as
        `load_encoder` returns them), `source` and `changes` of another project's, and `replaced`, the values of a file
        of ours in place of which size, mean or std were given.

    Raises:
        OSError: the file can't be read, or there is none.
        ValueError: it holds no encoder that we know, several, or code; the weights can't be downloaded; or the encoder
            takes no images of this size.

    >>> encoder, meta = open_encoder("runs/demo")  # doctest: +SKIP
    >>> encoder, meta = open_encoder("moco_v2_800ep_pretrain.pth.tar")  # doctest: +SKIP
    """
    values = {"size": size, "mean": mean and list(mean), "std": std and list(std)}
    given = {name: value for name, value in values.items() if value is not None}
    if f"{source}".partition(":")[0] in FAMILIES and not Path(source).exists():
        encoder, meta = published_encoder(f"{source}", size)
    elif Path(source).is_dir() or _is_ours(Path(source)):
        encoder, meta = load_encoder(source)
        if replaced := {name: meta[name] for name in given}:
            meta["replaced"] = replaced
    else:
        encoder, meta = _foreign(Path(source), note, values)
    meta = {**meta, **given}
    ViewSpec(meta["size"], mean=meta["mean"], std=meta["std"])  # checks them
    if meta["encoder"] != "resnet":
        check_image_size(encoder, meta["encoder"], meta["size"])
    return encoder, meta


def _is_ours(path: Path) -> bool:
    """Whether fastclr wrote the file; one that can't be read is left to `load_encoder`, which says why."""
    if not path.exists():
        return path.suffix not in (".pth", ".pt", ".ckpt", ".tar", ".torch")
    metadata = read_metadata(path)
    return CHECKSUM in metadata or "encoder" in metadata or all(key in metadata for key in RESNET_KEYS)


def _foreign(
    path: Path, note: Callable[[str], None], given: dict[str, Any]
) -> tuple[nn.Module, dict[str, Any]]:
    tensors = read_tensors(path)
    try:
        found = find_resnet(tensors)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    note(f"{path}: {found}")
    plain = found.layout == "simclr"
    meta = {
        "encoder": "resnet",
        "kwargs": found.kwargs,
        "size": SIZES[found.kwargs["stem"]],
        "mean": [0.0] * 3 if plain else list(IMAGENET_MEAN),
        "std": [1.0] * 3 if plain else list(IMAGENET_STD),
        "source": f"{path}",
        "changes": list(found.changes),
    }
    if assumed := [f"--{name} {_text(meta[name])}" for name, value in given.items() if value is None]:
        note(f"{path} does not say what images it was trained on; assumed: {', '.join(assumed)}")
    return found.encoder, meta


def _text(value: Any) -> str:
    return " ".join(f"{v:g}" for v in value) if isinstance(value, list) else f"{value}"
