"""`fastclr export RUN --to FORMAT OUT`: an encoder for torchvision, timm, ONNX, TorchScript or Hugging Face."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from fastclr.arguments import parse


@dataclass(frozen=True)
class Arguments:
    """Write an encoder for another library, after comparing the features that it gives there.

    torchvision, timm: weights that their ResNet of the same shape loads strictly.  onnx: a graph for a batch of any
    size.  torchscript: a traced program.  huggingface: a folder for the hub, which timm opens.
    """

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """Run folder of `fastclr train`, or an encoder.safetensors; a checkpoint of torchvision, timm, lightly, solo-learn,
    VISSL or MMSelfSup; or torchvision:NAME or timm:NAME."""
    out: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OUT")]
    """File to write (.pth or .safetensors, .onnx, .pt), or for huggingface the folder."""
    to: Literal["torchvision", "timm", "onnx", "torchscript", "huggingface"]
    """Format."""
    classes: int | None = None
    """Add a classifier of zeros with this many outputs: torchvision, timm, huggingface."""
    with_preprocessing: bool = False
    """The graph takes uint8 images of any size, and crops, resizes and normalises them: onnx."""
    license: str | None = None
    """Licence in the model card, by the hub's identifier: huggingface."""
    size: int | None = None
    """Pixels of an image; None: as the encoder's file says, or else 224, and 32 for a 3×3 stem."""
    mean: tuple[float, float, float] | None = None
    """Subtracted from each channel, on a scale of [0, 1]; None: as the encoder's file says, or else ImageNet's."""
    std: tuple[float, float, float] | None = None
    """Divides each channel; None: likewise."""


def main(argv: list[str]) -> None:
    """Export the encoder, and print how it is opened."""
    style = (tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff)
    _export(parse(Arguments, argv, "fastclr export", config=style))


def _export(arguments: Arguments) -> None:
    from fastclr.export import export, open_encoder
    from fastclr.export.formats import Options
    from pipelines.system.terminal import printable

    run, out = arguments.run, arguments.out
    encoder, meta = open_encoder(
        run,
        size=arguments.size,
        mean=arguments.mean,
        std=arguments.std,
        note=lambda text: print(printable(text, 2000)),
    )
    folder = run if run.is_dir() else None
    options = Options(arguments.classes, arguments.with_preprocessing, arguments.license, folder)
    code = export(encoder, meta, arguments.to, out, options)
    print(printable(f"written to {out}; its features are those of {run}. To open it:", 5000))
    for line in code.splitlines():
        print(printable(f"    {line}", 5000))
