"""`fastclr embed RUN FILE.beton --out features.npz`: features of every image, for scikit-learn, FAISS or a notebook."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from fastclr.arguments import DataSet, FieldNames, Fields, data_set, parse
from fastclr.cli.encoder_options import EncoderOptions, precision_of


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
    fields: Fields = field(default_factory=FieldNames)
    batch_size: int = 256
    """Images per step of the encoder."""
    encoder: Annotated[EncoderOptions, tyro.conf.arg(name="")] = field(default_factory=EncoderOptions)


def main(argv: list[str]) -> None:
    """Extract the features and write the file."""
    style = (tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff)
    _embed(parse(Arguments, argv, "fastclr embed", config=style))


def _embed(arguments: Arguments) -> None:
    from fastclr.evaluate.feature_files import WRITERS, Table, find_names
    from fastclr.evaluate.feature_store import remove_store, store_features
    from fastclr.evaluate.features import state_digest
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
    model, meta = arguments.encoder.open(arguments.run, note, batch_size=arguments.batch_size)
    with BetonReader(data_set(arguments.files), *arguments.fields) as reader:
        identity: dict[str, Any] = {
            "weights": state_digest(model.encoder),
            "data": reader.fingerprint,
            "size": meta["size"],
            "mean": list(meta["mean"]),
            "std": list(meta["std"]),
            "batch_size": arguments.batch_size,
            "precision": precision_of(model),
            "device": model.device.type,
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
