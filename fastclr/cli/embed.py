"""`fastclr embed RUN FILE.beton --out features.npz`: features of every image, for scikit-learn, FAISS or a notebook."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from fastclr.arguments import DataSet, data_set, parse


@dataclass(frozen=True)
class Arguments:
    """Write the features of every image, with labels, indices and names.

    The features are those of the centre of an image, in the order of the file.  The same command continues after it was
    stopped or killed.  Memory does not grow with the file; beside OUT, a hidden folder of its size exists meanwhile.
    """

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """Run folder of `fastclr train`, or an encoder.safetensors; a checkpoint of torchvision, timm, lightly, solo-learn,
    VISSL or MMSelfSup; or torchvision:NAME or timm:NAME."""
    files: DataSet
    """The images: a file, several files or a set."""
    out: Annotated[Path, tyro.conf.arg(metavar="OUT.npz")]
    """File to write: .npz, or .parquet (needs pyarrow)."""
    size: int | None = None
    """Pixels of an image; None: as the encoder's file says, or else 224, and 32 for a 3×3 stem."""
    mean: tuple[float, float, float] | None = None
    """Subtracted from each channel, on a scale of [0, 1]; None: as the encoder's file says, or else ImageNet's."""
    std: tuple[float, float, float] | None = None
    """Divides each channel; None: likewise."""
    batch_size: int = 256
    """Images per step of the encoder."""
    device: str = "auto"
    """cpu, cuda, cuda:N, or auto: a GPU where there is one."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the encoder; auto: bfloat16 where the hardware has it."""
    threads: int | None = None
    """Loader threads; None: one on a CPU, one per core beside a GPU."""


def main(argv: list[str]) -> None:
    """Extract the features and write the file."""
    style = (tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff)
    _embed(parse(Arguments, argv, "fastclr embed", config=style))


def _embed(arguments: Arguments) -> None:
    import torch

    from fastclr.device import has_bfloat16, pick_device
    from fastclr.evaluate.encoder import FrozenEncoder
    from fastclr.evaluate.feature_files import WRITERS, Table, find_names
    from fastclr.evaluate.feature_store import remove_store, store_features
    from fastclr.evaluate.features import state_digest
    from fastclr.export import open_encoder
    from pipelines import BetonReader
    from pipelines.convert.optional import import_optional
    from pipelines.system.terminal import printable

    def note(text: str) -> None:
        print(printable(text, 2000))

    out = arguments.out
    if out.suffix not in WRITERS:
        raise ValueError(f"--out is {out}; it should end in {' or '.join(WRITERS)}")
    if out.suffix == ".parquet":
        import_optional("pyarrow.parquet", "parquet", f"{out}")
    if arguments.batch_size < 1:
        raise ValueError(f"--batch-size is {arguments.batch_size}; it must be at least 1")
    encoder, meta = open_encoder(
        arguments.run, size=arguments.size, mean=arguments.mean, std=arguments.std, note=note
    )
    device = pick_device(arguments.device)
    half = arguments.precision == "bfloat16" or (arguments.precision == "auto" and has_bfloat16(device))
    with BetonReader(data_set(arguments.files)) as reader:
        model = FrozenEncoder.from_meta(
            encoder,
            meta,
            device,
            autocast=torch.bfloat16 if half else None,
            num_threads=arguments.threads,
            batch_size=arguments.batch_size,
        )
        identity: dict[str, Any] = {
            "weights": state_digest(encoder),
            "data": reader.fingerprint,
            "size": meta["size"],
            "mean": list(meta["mean"]),
            "std": list(meta["std"]),
            "batch_size": arguments.batch_size,
            "precision": "bfloat16" if half else "float32",
            "device": device.type,
        }
        folder = out.with_name(f".{out.name}.partial")
        stored = store_features(model, reader, folder, identity)
        names = find_names(reader)
        if names is None:
            note(f"{reader.path}: no names of its images lie beside it, so {out} has none")
        table = Table(stored.rows, reader.labels, names, reader.class_names, {**meta, **identity})
        WRITERS[out.suffix](out, table)
        corrupt = len(reader) - len(table.kept)
        remove_store(folder)
    left_out = f"; {corrupt} corrupt ones are left out" if corrupt else ""
    continued = f", continued at image {stored.resumed_at:,}" if stored.resumed_at else ""
    note(
        f"{len(reader) - corrupt:,} images, {stored.rows.shape[1]} features{continued}{left_out}: written to {out}"
    )
