"""`fastclr evaluate RUN --train A.beton --test B.beton`: what has the encoder of a run learned?"""

import json
import os
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from fastclr.arguments import call
from fastclr.evaluate.protocol import Protocol

RESULT = "evaluate.json"


def main(argv: list[str]) -> None:
    """Weighted kNN and linear probe; prints a table and writes RUN/evaluate.json."""
    call(
        _evaluate,
        argv,
        "fastclr evaluate",
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
    )


def _evaluate(
    run: Annotated[
        tyro.conf.Positional[Path],
        tyro.conf.arg(metavar="RUN", help="Run folder of `fastclr train`, or an encoder.safetensors."),
    ],
    train: Annotated[
        Path, tyro.conf.arg(metavar="A.beton", help="Labelled images to learn from: a file or a set.")
    ],
    test: Annotated[
        Path, tyro.conf.arg(metavar="B.beton", help="Labelled images to be tested on: a file or a set.")
    ],
    protocol: Annotated[Protocol, tyro.conf.arg(name="")] = Protocol(),  # noqa: B008 frozen
    device: Annotated[
        str, tyro.conf.arg(help="cpu, cuda, cuda:N, or auto: a GPU where there is one.")
    ] = "auto",
    precision: Annotated[
        Literal["auto", "float32", "bfloat16"],
        tyro.conf.arg(help="Precision of the encoder; auto: bfloat16 where the hardware has it."),
    ] = "auto",
    threads: Annotated[
        int | None, tyro.conf.arg(help="Loader threads; None: one on a CPU, one per core beside a GPU.")
    ] = None,
) -> None:
    """Weighted kNN and linear probe of a run's encoder; prints a table and writes RUN/evaluate.json.

    The encoder stays frozen. The linear probe trains on the features of a few augmented passes, which takes
    minutes on a laptop; `--new-views` is the published protocol, new views in every epoch.
    """
    import torch
    from rich.console import Console

    from fastclr.device import has_bfloat16, pick_device
    from fastclr.evaluate.encoder import Frozen
    from fastclr.evaluate.protocol import evaluate_files
    from fastclr.train.checkpoint import atomic_write, load_encoder
    from pipelines import BetonReader
    from pipelines.system.terminal import printable

    encoder, meta = load_encoder(run)
    out = (run if run.is_dir() else run.parent) / RESULT
    if not os.access(out.parent, os.W_OK):
        raise PermissionError(f"{out} can't be written: no permission for this folder")
    where = pick_device(device)
    half = precision == "bfloat16" or (precision == "auto" and has_bfloat16(where))
    start = time.perf_counter()
    with BetonReader(train) as train_reader, BetonReader(test) as test_reader:
        model = Frozen.from_meta(
            encoder, meta, where, autocast=torch.bfloat16 if half else None, num_threads=threads
        )
        console = Console(highlight=False)

        def note(text: str) -> None:
            console.print(printable(text), markup=False, soft_wrap=True)

        results = evaluate_files(model, train_reader, test_reader, protocol, note=note)
        record = {
            "encoder": meta,
            "train": _identity(train_reader),
            "test": _identity(test_reader),
            **results,
            "device": str(where),
            "precision": "bfloat16" if half else "float32",
            "seconds": time.perf_counter() - start,
            "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "versions": _versions(),
        }
    with atomic_write(out) as file:
        file.write((json.dumps(record, indent=2) + "\n").encode())
    console.print(_table(record))
    console.print(printable(f"written to {out}", 5000), markup=False, soft_wrap=True)


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

    row("weighted kNN", f"cosine, k = {knn['k']}, T = {knn['temperature']:g}, centre crop", knn)
    if linear := record.get("linear"):
        row("linear probe", f"{linear['epochs']} epochs, crop and flip: {linear['views']}", linear)
    if logistic := record.get("logistic"):
        row("logistic regression", f"L-BFGS, L2 = {logistic['l2']:.3g}, no augmentation", logistic)
    features = record["features"]
    table.caption = (
        f"{features['train_samples']:,} training and {features['test_samples']:,} test images, "
        f"features {features['width']} wide, extracted in {features['seconds']:.1f} s"
    )
    return table


def _identity(reader: Any) -> dict[str, Any]:
    return {"file": str(reader.path), "fingerprint": reader.fingerprint, "samples": len(reader)}


def _versions() -> dict[str, str]:
    from fastclr import __version__
    from pipelines.system.versions import package_versions

    return {"fastclr": __version__, **package_versions("torch", "numpy")}
