"""`fastclr evaluate RUN --train A.beton --test B.beton`: accuracy of an encoder, a run's or another project's."""

import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from fastclr.arguments import FieldNames, Fields, parse
from fastclr.cli.encoder_options import EncoderOptions, precision_of
from fastclr.evaluate.protocol import EvalConfig

RESULT = "evaluate.json"


@dataclass(frozen=True)
class Arguments:
    """Weighted kNN and linear probe of an encoder; prints a table and writes RUN/evaluate.json.

    The encoder stays frozen. The linear probe trains on the features of a few augmented passes, which takes
    minutes on a laptop; `--new-views` is the published protocol, new views in every epoch.
    """

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """Run folder of `fastclr train`, or an encoder.safetensors; a checkpoint of torchvision, timm, lightly, solo-learn,
    VISSL or MMSelfSup; or torchvision:NAME or timm:NAME."""
    train: Annotated[Path, tyro.conf.arg(metavar="A.beton")]
    """Labelled images to learn from: a file or a set."""
    test: Annotated[Path, tyro.conf.arg(metavar="B.beton")]
    """Labelled images to be tested on: a file or a set."""
    fields: Fields = field(default_factory=FieldNames)
    config: Annotated[EvalConfig, tyro.conf.arg(name="")] = field(default_factory=EvalConfig)
    encoder: Annotated[EncoderOptions, tyro.conf.arg(name="")] = field(default_factory=EncoderOptions)


def main(argv: list[str]) -> None:
    """Evaluate the encoder, print a table and write the result."""
    style = (tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff)
    _evaluate(parse(Arguments, argv, "fastclr evaluate", config=style))


def _evaluate(arguments: Arguments) -> None:
    from rich.console import Console

    from fastclr.evaluate.protocol import evaluate_files
    from fastclr.train.checkpoint import atomic_write
    from pipelines import BetonReader
    from pipelines.system.terminal import printable

    console = Console(highlight=False)

    def note(text: str) -> None:
        console.print(printable(text, 2000), markup=False, soft_wrap=True)

    out = _result_path(arguments.run)
    model, meta = arguments.encoder.open(arguments.run, note)
    replaced = meta.pop("replaced", {})
    images = {key: meta[key] for key in ("size", "mean", "std")}
    if not os.access(out.parent, os.W_OK):
        raise PermissionError(f"{out} can't be written: no permission for this folder")
    start = time.perf_counter()
    fields = arguments.fields
    with BetonReader(arguments.train, *fields) as train, BetonReader(arguments.test, *fields) as test:
        results = evaluate_files(model, train, test, arguments.config, note=note)
        record = {
            "encoder": {**meta, **replaced},
            **images,
            "train": _identity(train),
            "test": _identity(test),
            **results,
            "device": str(model.device),
            "precision": precision_of(model),
            "seconds": time.perf_counter() - start,
            "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "versions": _versions(),
        }
    with atomic_write(out) as file:
        file.write((json.dumps(record, indent=2) + "\n").encode())
    console.print(_table(record))
    console.print(printable(f"written to {out}", 5000), markup=False, soft_wrap=True)


def _result_path(run: Path) -> Path:
    """Return where the result goes: into the run, beside a file, or for a published model into this folder."""
    from fastclr.train.encoder_file import ENCODER

    if run.is_dir():
        return run / RESULT
    if run.name == ENCODER:
        return run.parent / RESULT
    return run.parent / f"{run.name.replace(':', '-')}.{RESULT}"


def _table(record: dict[str, Any]) -> Any:
    from rich.table import Table

    from fastclr.train.encoder_file import encoder_title

    meta, knn = record["encoder"], record["knn"]
    title = encoder_title(meta) + (f", step {meta['step']}" if "step" in meta else "")
    table = Table(title=f"{title}: {record['num_classes']} classes")
    for name in ("measurement", "protocol"):
        table.add_column(name)
    for name in ("top-1", "seconds"):
        table.add_column(name, justify="right")

    def row(name: str, protocol: str, result: dict[str, Any]) -> None:
        table.add_row(name, protocol, f"{result['top1']:.2%}", f"{result['seconds']:.1f}")

    row(
        "weighted kNN",
        f"cosine, k = {knn['k']}, T = {knn['temperature']:g}, centre crop of {record['size']} px",
        knn,
    )
    if linear := record.get("linear"):
        row("linear probe", f"{linear['epochs']} epochs, crop and flip: {linear['views']}", linear)
    if logistic := record.get("logistic"):
        row("logistic regression", f"L-BFGS, L2 = {logistic['l2']:.3g}, no augmentation", logistic)
    features = record["features"]
    table.caption = (
        f"{features['train_samples']:,} training and {features['test_samples']:,} test images, "
        f"{features['width']} features, extracted in {features['seconds']:.1f} s"
    )
    return table


def _identity(reader: Any) -> dict[str, Any]:
    return {"file": str(reader.path), "fingerprint": reader.fingerprint, "samples": len(reader)}


def _versions() -> dict[str, str]:
    from fastclr import __version__
    from pipelines.system.versions import package_versions

    return {"fastclr": __version__, **package_versions("torch", "numpy")}
