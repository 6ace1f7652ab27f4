"""Opens the source that a user means: folders, tars, tables, ImageNet, torchvision's data sets."""

import re
from pathlib import Path

from pipelines.convert.columns import parse_columns, reject_columns
from pipelines.convert.files import MAX_FILE_MB
from pipelines.convert.folder import FolderSource
from pipelines.convert.imagenet import open_imagenet
from pipelines.convert.parquet import ParquetSource, is_parquet
from pipelines.convert.protocol import Source
from pipelines.convert.tar import TarSource
from pipelines.convert.torchvision_sets import DATASETS, DatasetSource
from pipelines.system.terminal import printable

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://|pipe:")


def open_source(
    sources: list[str],
    split: str | None = None,
    max_file_mb: int = MAX_FILE_MB,
    *,
    columns: str | None = None,
    check: bool = False,
) -> Source:
    """Open the source that a user means.

    Args:
        sources: a folder with one folder per class, a folder of images, `imagenet:DIR`, one of `cifar10:DIR`,
            `cifar100:DIR`, `stl10:DIR`, or any number of tar or Parquet files.
        split: split of ImageNet or of a torchvision data set; None: "train".
        max_file_mb: size limit of one image file, in MB; larger ones fail when they are read.
        columns: "image=NAME,label=NAME" or one of both: the columns of a Parquet file; of WebDataset tars, label is
            "cls", "txt", "json" or "json.KEY".
        check: compare ImageNet's archives with their official MD5 sums.

    Raises:
        OSError: it does not exist or cannot be read.
        ValueError: there is no image in it, or what it is cannot be told.
    """
    named = parse_columns(columns)
    prefix, _, folder = sources[0].partition(":")
    if check and prefix != "imagenet":
        raise ValueError(
            "--check compares ImageNet's archives with their official sums; it needs imagenet:DIR"
        )
    if len(sources) == 1 and folder and prefix in ("imagenet", *DATASETS):
        reject_columns(named, (), prefix)
        if prefix == "imagenet":
            return open_imagenet(Path(folder), split or "train", max_file_mb, check)
        return DatasetSource(prefix, Path(folder), split or "train")
    if split is not None:
        raise ValueError(
            f"a split is a part of imagenet, {', '.join(DATASETS)}; of other images, give the folder of the part"
        )
    for source in sources:
        _check_path(source)
    paths = [Path(source) for source in sources]
    if all(path.is_file() for path in paths):
        if all(is_parquet(path) for path in paths):
            return ParquetSource(paths, named, max_file_mb)
        reject_columns(named, ("label",), "a tar")
        return TarSource(paths, max_file_mb, named.get("label"))
    if len(paths) > 1:
        raise ValueError(f"{len(paths)} sources: only tars can be given several at a time")
    if parquet_files := sorted(paths[0].glob("*.parquet")):
        return ParquetSource(parquet_files, named, max_file_mb)
    reject_columns(named, (), "a folder")
    return FolderSource(paths[0], max_file_mb)


def reject_url(path: str, remedy: str) -> None:
    """Raise ValueError where a path is a URL."""
    if _URL.match(path):
        raise ValueError(
            f"{printable(path)} is a URL, and only local folders and files can be used; {remedy}"
        )


def _check_path(source: str) -> None:
    reject_url(source, "download it first")
    path = Path(source)
    if not path.exists():
        known = ", ".join(f"{name}:DIR" for name in ("imagenet", *DATASETS))
        hint = "; patterns with * or {…} are expanded by the shell: give them without quotes"
        raise FileNotFoundError(
            f"{printable(source)}: no such folder or file; a source is a folder, a tar, or one of {known}"
            + (hint if re.search(r"[*?{]", source) else "")
        )
    if not (path.is_dir() or path.is_file()):
        raise ValueError(
            f"{printable(source)} is a pipe, a socket or a device; a source is read in any order and must be a file "
            "or a folder: save it to a file first"
        )
