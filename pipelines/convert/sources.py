"""Opens the source that a user means: folders, archives, tables, ImageNet, torchvision's data sets."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pipelines.convert.columns import parse_columns, reject_columns
from pipelines.convert.files import MAX_FILE_MB
from pipelines.convert.folder import FolderSource
from pipelines.convert.imagenet import open_imagenet
from pipelines.convert.label_files import read_label_file
from pipelines.convert.labels import apply_labels
from pipelines.convert.merged import MergedSource
from pipelines.convert.parquet import ParquetSource, is_parquet
from pipelines.convert.parquet_folder import parquet_files
from pipelines.convert.patterns import expand_pattern
from pipelines.convert.protocol import Source
from pipelines.convert.remote import RemoteFiles, expand_urls, suffix_of_url
from pipelines.convert.tar import TarSource
from pipelines.convert.torchvision_sets import DATASETS, DatasetSource, open_torchvision
from pipelines.convert.zip import ZipSource, is_zip
from pipelines.system.terminal import printable

PREFIXES = ("imagenet", "torchvision", *DATASETS)
"""What stands before the colon of a data set that is known by its name."""

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://|pipe:")


@dataclass(frozen=True)
class _Options:
    """How sources are read."""

    split: str | None
    max_file_mb: int
    check: bool
    columns: Mapping[str, str] = field(default_factory=dict)
    progress: Callable[[int, int], None] = lambda done, total: None
    is_part: bool = False
    """Whether other sources are merged with it, which may be those that the split and the columns are of."""


def open_source(
    sources: list[str],
    split: str | None = None,
    max_file_mb: int = MAX_FILE_MB,
    *,
    columns: str | None = None,
    labels: Path | None = None,
    merge: bool = False,
    check: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Source:
    """Open the source that the user named.

    Args:
        sources: a folder with one folder per class, a folder of images or of Parquet files, `imagenet:DIR`,
            `torchvision:NAME:DIR`, one of `cifar10:DIR`, `cifar100:DIR`, `stl10:DIR`, or any number of tars, of
            zips or of Parquet files, or patterns of their names; tars and Parquet files may be URLs.
        split: split of a data set; None: "train", or torchvision's default.
        max_file_mb: size limit of one image file, in MB; larger ones fail when they are read.
        columns: "image=NAME,label=NAME" or one of both: the columns of a Parquet file or of `labels`; of WebDataset
            tars, label is "cls", "txt", "json" or "json.KEY".
        labels: a table of names and labels, for the images of a folder, of tars or of zips.
        merge: each of `sources` is a source of its own; a class is all images of its name.
        check: compare ImageNet's archives with their official MD5 sums.
        progress: called with the number of shards that have been downloaded, and of all, where sources are URLs.

    Raises:
        OSError: it does not exist or cannot be read.
        ValueError: it holds no image, or its kind cannot be determined.
    """
    if check and not any(source.startswith("imagenet:") for source in sources):
        raise ValueError(
            "--check compares ImageNet's archives with their official sums; it needs imagenet:DIR"
        )
    named = parse_columns(columns)
    if labels is None:
        options = _Options(split, max_file_mb, check, named, progress, is_part=merge)
        if merge:
            return MergedSource([_open([source], options) for source in sources])
        return _open(sources, options)
    if merge:
        raise ValueError(
            "--labels is a table for one source, and --merge has several; convert them one at a time"
        )
    source = _open(sources, _Options(split, max_file_mb, check, progress=progress))
    if source.kind in ("imagenet", "torchvision", "parquet"):
        raise ValueError(
            f"--labels is for folders and archives of images; {source.kind} has labels of its own"
        )
    return apply_labels(source, read_label_file(labels, named))


def _open(sources: list[str], options: _Options) -> Source:
    prefix, _, rest = sources[0].partition(":")
    if len(sources) == 1 and rest and prefix in PREFIXES:
        _reject_columns(options, (), prefix)
        if prefix == "imagenet":
            return open_imagenet(Path(rest), options.split or "train", options.max_file_mb, options.check)
        if prefix == "torchvision":
            return open_torchvision(rest, options.split, options.max_file_mb)
        return DatasetSource(prefix, Path(rest), options.split or "train")
    if any(map(_URL.match, sources)):
        return _open_remote(sources, options)
    paths = [_existing(path) for source in sources for path in expand_pattern(source)]
    if len(paths) == 1 and paths[0].is_dir():
        if files := parquet_files(paths[0], options.split):
            return ParquetSource(files, options.columns, options.max_file_mb)
        _reject_split(options)
        _reject_columns(options, (), "a folder")
        return FolderSource(paths[0], options.max_file_mb)
    _reject_split(options)
    if not all(path.is_file() for path in paths):
        raise ValueError(
            f"{len(paths)} sources: only tars, zips or Parquet files can be given several at a time; --merge makes one "
            "set of several folders"
        )
    return _open_files(paths, options)


def _open_files(paths: list[Path], options: _Options) -> Source:
    if all(map(is_parquet, paths)):
        return ParquetSource(paths, options.columns, options.max_file_mb)
    if all(map(is_zip, paths)):
        _reject_columns(options, (), "a zip")
        return ZipSource(paths, options.max_file_mb)
    _reject_columns(options, ("label",), "a tar")
    return TarSource(paths, options.max_file_mb, options.columns.get("label"))


def _open_remote(sources: list[str], options: _Options) -> Source:
    _reject_split(options)
    if not all(map(_URL.match, sources)):
        raise ValueError("local and remote sources: --merge makes one set of them")
    for source in sources:
        if source.startswith("pipe:"):
            reject_url(source, "download it first")
    urls = [url for source in sources for url in expand_urls(source)]
    suffixes = {suffix_of_url(url) for url in urls}
    if suffixes not in ({".tar"}, {".parquet"}):
        raise ValueError(
            f"{printable(urls[0])}: remote sources are tars or Parquet files, got "
            f"{printable(', '.join(sorted(suffixes)), 100) or 'no suffix'}; download other ones first"
        )
    files = RemoteFiles(urls, progress=options.progress)
    if suffixes == {".parquet"}:
        return ParquetSource(files.paths, options.columns, options.max_file_mb, files.held)
    _reject_columns(options, ("label",), "a tar")
    tars = TarSource(files.paths, options.max_file_mb, options.columns.get("label"), files.held)
    tars.sequential = not files.are_all_kept
    return tars


def reject_url(path: str, remedy: str) -> None:
    """Raise ValueError where a path is a URL."""
    if _URL.match(path):
        raise ValueError(f"{printable(path)} is a URL, and only a local one can be used here; {remedy}")


def _reject_columns(options: _Options, allowed: tuple[str, ...], source: str) -> None:
    if not options.is_part:
        reject_columns(options.columns, allowed, source)


def _reject_split(options: _Options) -> None:
    if options.split is not None and not options.is_part:
        raise ValueError(
            f"a split is a part of {', '.join(PREFIXES)} or a folder of Parquet files; of other images, give the "
            "folder of the part"
        )


def _existing(source: str) -> Path:
    path = Path(source)
    if not path.exists():
        known = ", ".join(f"{name}:DIR" for name in ("imagenet", *DATASETS))
        raise FileNotFoundError(
            f"{printable(source)}: no such folder or file; a source is a folder, a tar, a zip, Parquet files, or one "
            f"of {known}, torchvision:NAME:DIR"
        )
    if not (path.is_dir() or path.is_file()):
        raise ValueError(
            f"{printable(source)} is a pipe, a socket or a device; a source is read in any order and must be a file "
            "or a folder: save it to a file first"
        )
    return path
