"""`fastclr convert SOURCE OUT.beton`: convert images into one file or a set of files."""

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from fastclr.arguments import parse
from pipelines.beton import sidecar_path
from pipelines.beton.layout import check_field_names
from pipelines.beton.sidecar import check_sidecar_path
from pipelines.convert import Encoding, Report, Source, convert, open_source
from pipelines.convert.files import MAX_FILE_MB
from pipelines.convert.names_file import names_path
from pipelines.convert.shards import (
    ShardedConversion,
    ShardOptions,
    check_names,
    convert_shards,
    report_of,
)
from pipelines.convert.sources import reject_url
from pipelines.system.cpus import cores
from pipelines.system.terminal import printable

_RAY_ADDRESS = re.compile(r"auto|local|ray://.+|[^:/\s]+:\d+")
SHOWN = 5
"""Maximum number of left-out images that are named on the screen; the side-car names all."""


@dataclass(frozen=True)
class Arguments:
    """Convert images into one .beton file, a .json that describes the file, and a .names with the images' names.

    SOURCE is a folder with one folder per class, a folder of images, imagenet:DIR (archives as downloaded, Kaggle's
    tree, folders, or Hugging Face's parquet files), cifar10:DIR, cifar100:DIR, stl10:DIR or torchvision:NAME:DIR
    (downloaded into DIR if it is not there yet), parquet files, zips of folders, or one or several uncompressed tars.
    A tar contains class folders, WebDataset pairs (KEY.jpg and KEY.cls), the images of one class (n01440764.tar
    n01443537.tar …), or other tars. Files may be given as patterns in quotes ('train-{000..146}.tar'). Tars and
    parquet files may also be given as URLs (s3://…, gs://…, https://…).
    """

    paths: Annotated[
        tuple[str, ...],
        tyro.conf.Positional,
        tyro.conf.arg(metavar="SOURCE... OUT.beton", help_behavior_hint=""),
    ]
    """One or several sources of images, followed by the file to write."""
    encoding: Annotated[Encoding, tyro.conf.arg(name="")] = field(default_factory=Encoding)
    order: Literal["shuffled", "source"] = "shuffled"
    """Order of the images in the file: shuffled with the seed, or the order of the source."""
    seed: int = 0
    """Seed of the shuffle."""
    workers: int = field(default_factory=cores)
    """Number of threads that encode; the file is the same for any number of threads."""
    on_error: Literal["skip", "stop"] = "skip"
    """What to do with an image that cannot be read: leave it out and name it in the report, or stop the conversion.
    "stop" also stops at an image that only a lenient decoder reads."""
    split: str | None = None
    """Split of the data set to convert: "train" or "val" for imagenet; "train" or "test" for cifar10, cifar100 and
    stl10 (which also has "unlabeled"); a split that the data set of torchvision has; or a split of a folder of parquet
    files. None: train, or torchvision's default."""
    columns: str | None = None
    """Columns to read. For parquet files or the table of --labels: image=NAME,label=NAME or one of the two. For
    WebDataset tars: label=cls, txt, json or json.KEY. None: the columns with the usual names."""
    labels: Path | None = None
    """Table of names and labels for images in a folder or an archive; its format is CSV, JSON lines, ImageNet's
    ground truth, Kaggle's solution, metadata.csv or val_annotations.txt."""
    merge: tyro.conf.FlagCreatePairsOff[bool] = False
    """Treat each SOURCE as a separate data set, and merge classes of the same name."""
    check: tyro.conf.FlagCreatePairsOff[bool] = False
    """Check ImageNet's archives against their official MD5 sums before converting."""
    max_file_mb: int = MAX_FILE_MB
    """Maximum size of a source image in MB; a larger file is treated as one that cannot be read."""
    image_field: str = "image"
    """Name of the image field in the file, for FFCV's pipelines."""
    label_field: str = "label"
    """Name of the label field in the file."""
    overwrite: tyro.conf.FlagCreatePairsOff[bool] = False
    """Replace OUT.beton, its .json and its .names."""
    sharding: Annotated[tyro.conf.FlagCreatePairsOff[ShardOptions], tyro.conf.arg(name="")] = field(
        default_factory=ShardOptions
    )

    @property
    def sources(self) -> list[str]:
        return list(self.paths[:-1])

    @property
    def out(self) -> Path:
        return Path(self.paths[-1])


def main(argv: list[str]) -> None:
    """Run the command."""
    arguments = _parse(argv)
    _check(arguments)
    _stop_like_ctrl_c()
    console = Console(highlight=False)
    with console.status("reading the source") as status:
        source = _opening(arguments)(
            check=arguments.check,
            progress=lambda done, total: status.update(f"downloaded {done:,} of {total:,} shards"),
        )
    names = source.class_names
    classes = f", {len(names)} class{'' if len(names) == 1 else 'es'}" if names else ", no class names"
    console.print(f"{source.kind} {source.name!r}: {len(source.labels):,} images{classes}", markup=False)
    for remark in [*source.remarks, *_labels_note(source)]:
        console.print(f"  {printable(remark)}", markup=False, soft_wrap=True)
    # the comparison takes a second, and is for those who have not chosen yet
    compares = not any(word.partition("=")[0] == "--jpeg" for word in argv)
    if arguments.sharding.shards is not None:
        _convert_shards(console, source, arguments, compares)
        return
    if compares:
        _print_comparison(console, source, arguments)
    start = time.monotonic()
    with _progress_bar(console, len(source.labels)) as progress:
        report = convert(
            source,
            arguments.out,
            arguments.encoding,
            order=arguments.order,
            seed=arguments.seed,
            on_error=arguments.on_error,
            workers=arguments.workers,
            progress=progress,
            overwrite_names=arguments.overwrite,
            image_field=arguments.image_field,
            label_field=arguments.label_field,
        )
    _print_report(console, report, arguments.out, time.monotonic() - start)


def _opening(arguments: Arguments) -> Callable[..., Source]:
    """Return what opens the source; picklable, for the nodes of a cluster."""
    return partial(
        open_source,
        arguments.sources,
        arguments.split,
        arguments.max_file_mb,
        columns=arguments.columns,
        labels=arguments.labels,
        merge=arguments.merge,
    )


def _with_ray_address(argv: list[str]) -> list[str]:
    """Return the arguments with an address after each `--ray`: "auto" if there is none."""
    out = []
    for word, following in zip(argv, [*argv, ""][1:], strict=True):
        out.append(word)
        if word == "--ray" and not _RAY_ADDRESS.fullmatch(following):
            out.append("auto")
    return out


def _parse(argv: list[str]) -> Arguments:
    argv = _with_ray_address(argv)
    arguments, unknown = parse(Arguments, argv, "fastclr convert", return_unknown_args=True)
    if any(argument.startswith("-") for argument in unknown):
        return parse(Arguments, argv, "fastclr convert")  # this call names the unknown option
    if unknown:
        raise ValueError(f"{unknown[0]} follows an option: put all options before SOURCE or after OUT.beton")
    return arguments


def _labels_note(source: Source) -> list[str]:
    """Return a note on the use of images without labels or of one class only."""
    num_classes = len(np.unique(source.labels[source.labels >= 0]))
    if num_classes > 1:
        return []
    found = "all images are of one class" if num_classes else "the images have no labels"
    return [f"{found}: enough for `fastclr train`; `fastclr evaluate` needs two classes or more"]


def _stop_like_ctrl_c() -> None:
    """Make SIGTERM, and SIGHUP unless it is ignored (nohup), end the command like Ctrl-C, without a partial file."""
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)


def _check(arguments: Arguments) -> None:
    """Raise the errors that would otherwise occur only after the conversion."""
    if len(arguments.paths) < 2:
        raise ValueError("convert needs two arguments, SOURCE and OUT.beton; see --help")
    reject_url(arguments.paths[-1], "write the file to a local folder")
    out = arguments.out
    if out.suffix != ".beton":
        raise ValueError(f"the last argument is the file to write and must end in .beton, got {out}")
    if not out.parent.is_dir():
        raise FileNotFoundError(f"{out.parent}: no such folder to write {out.name} to; create it first")
    if arguments.max_file_mb < 1:
        raise ValueError(f"--max-file-mb must be at least 1, got {arguments.max_file_mb}")
    if arguments.workers < 1:
        raise ValueError(f"--workers must be at least 1, got {arguments.workers}")
    check_field_names(arguments.image_field, arguments.label_field)
    if arguments.sharding.shards is not None:
        return  # `check_names` checks the files of a set
    # a symbolic link itself is replaced, so a side-car beside its target does not matter
    for path in (out, out.with_suffix(".json"), names_path(out)):
        if path.is_dir():
            raise IsADirectoryError(f"{path} is a folder; choose another name for the file to write")
        if os.path.lexists(path) and not arguments.overwrite:
            raise FileExistsError(f"{path} exists; choose another name, or --overwrite it")
    check_sidecar_path(out)


def _convert_shards(console: Console, source: Source, arguments: Arguments, compares: bool) -> None:
    """Write a set of several files, or one shard of it."""
    sharding, out = arguments.sharding, arguments.out
    assert sharding.shards is not None
    conversion = ShardedConversion(
        source,
        out,
        sharding.shards,
        arguments.encoding,
        arguments.order,
        arguments.seed,
        arguments.on_error,
        arguments.image_field,
        arguments.label_field,
    )
    check_names(conversion, sharding.shard, resume=sharding.resume, overwrite=arguments.overwrite)
    if sharding.shard is None:
        num_images = len(source.labels)
        if compares:
            _print_comparison(console, source, arguments)
    else:
        num_images = len(conversion.images(sharding.shard))
    start = time.monotonic()
    keep_complete = sharding.resume and not arguments.overwrite
    with _progress_bar(console, num_images) as progress:
        if sharding.ray is None:
            written = convert_shards(
                conversion,
                sharding.shard,
                keep_complete=keep_complete,
                workers=arguments.workers,
                progress=progress,
            )
        else:
            from pipelines.convert.ray_tasks import convert_on_ray

            written = convert_on_ray(
                conversion,
                _opening(arguments),
                sharding.ray,
                keep_complete=keep_complete,
                cpus=arguments.workers,
                memory_mb=sharding.ray_memory_mb,
                progress=progress,
            )
    _print_set(console, conversion, written, time.monotonic() - start)


def _print_set(console: Console, conversion: ShardedConversion, written: list[int], seconds: float) -> None:
    now = (conversion.written(shard, verify=False) for shard in written)
    report = report_of(sidecar for sidecar in now if sidecar)
    if written:
        name = conversion.path(written[0])
        _print_report(console, report, name if len(written) == 1 else conversion.out, seconds)
    count, missing = conversion.count, conversion.missing()
    if missing:
        state = (
            f"{count - len(missing)} of {count} shards are there; --resume writes the others and the index"
        )
    else:
        state = f"{len(written)} of {count} shards written now; the set is complete: {sidecar_path(conversion.out)}"
    console.print(printable(state), markup=False, soft_wrap=True)


def _print_comparison(console: Console, source: Source, arguments: Arguments) -> None:
    from pipelines.convert.compare import COMPARED, compare

    # a set that small is converted faster than the ways to store it are compared
    if len(source.labels) < COMPARED:
        return
    rows = compare(source, arguments.encoding, arguments.seed, arguments.workers)
    if not rows:
        return
    num_images = len(source.labels)
    title = f"{COMPARED} samples stored in each way (raw pixels: --mode raw)"
    table = Table(title=title, title_justify="left", box=None)
    for name in ("", "KB/image", "all images", "decoded by one thread", "for two random crops"):
        table.add_column(name, justify="right" if name else "left")
    chosen = arguments.encoding.jpeg if arguments.encoding.mode == "jpg" else ""
    for row in rows:
        table.add_row(
            f"--jpeg {row.name}" + (" ◀" if row.name == chosen else ""),
            f"{row.mean_bytes / 1e3:.1f}",
            f"{_size(row.mean_bytes * num_images)}",
            f"{row.images_per_s:,.0f} images/s",
            f"{row.crops_per_s:,.0f} images/s",
        )
    console.print(table)


class _RateColumn(ProgressColumn):
    """Images per second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.finished_speed or task.speed or 0:,.0f} images/s")


@contextmanager
def _progress_bar(console: Console, total: int) -> Iterator[Callable[[int], None]]:
    columns = (BarColumn(), MofNCompleteColumn(), _RateColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=total)
        due = 0.0

        def progress(done: int) -> None:
            nonlocal due
            # an update takes longer than the conversion of a small image
            if done == total or time.monotonic() > due:
                bar.update(task, completed=done)
                due = time.monotonic() + 0.1

        yield progress


def _print_report(console: Console, report: Report, out: Path, seconds: float) -> None:
    transcoded = f"{report.transcoded:,} with restart markers added, " if report.transcoded else ""
    lines = [
        f"{out}: {report.written:,} images, {_size(report.file_bytes)}, {report.found / seconds:,.0f} images/s",
        f"  {report.kept:,} byte for byte, {transcoded}{report.encoded:,} encoded, "
        f"{len(report.skipped):,} left out",
    ]
    reasons = sorted(report.re_encoded.items(), key=lambda item: -len(item[1]))
    lines += [f"  noted: {len(names):,} × {reason}" for reason, names in reasons[:SHOWN]]
    if len(reasons) > SHOWN:
        lines.append(f"  … and for {len(reasons) - SHOWN:,} more reasons, in {sidecar_path(out)}")
    lines += [f"  left out: {name!r}: {reason}" for name, reason in report.skipped.items()][:SHOWN]
    if len(report.skipped) > SHOWN:
        lines.append(f"  … and {len(report.skipped) - SHOWN:,} more, named in {sidecar_path(out)}")
    console.print("\n".join(map(printable, lines)), markup=False, soft_wrap=True)


def _size(num_bytes: float) -> str:
    for unit in ("B", "KB", "MB"):
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:,.1f} GB"
