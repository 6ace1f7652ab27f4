"""Conversion and opening at ImageNet's size and beyond, on small images: what a million of them cost besides decoding.

    python -m benchmarks.convert.scale FOLDER --images 1281167 --out scale.json
    python -m benchmarks.convert.scale FOLDER --images 1281167 --shards 64 --out scale-shards.json
    python -m benchmarks.convert.scale FOLDER --images 14000000 --shards 64 --tables-only --out scale-14m.json

FOLDER holds some JPEGs, CIFAR-10's say, whose bytes are repeated in a tar of 1000 class folders (or, with
--tar-of-tars, of 1000 class tars).  Conversion, opening and the first batch each run in a process of their own.
"""

import io
import itertools
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import tyro

from benchmarks.core.machine import Machine, describe_machine
from benchmarks.core.process import call_in_process
from benchmarks.core.report import check_at_least_1, check_out, save
from fastclr.arguments import parse
from pipelines.beton import BetonReader, BetonWriter
from pipelines.beton.sets import shard_path
from pipelines.planner import ORDERS, epoch_order
from pipelines.system.cpus import cores

NUM_CLASSES = 1000
MAX_SOURCE_FILES = 50_000
TIMEOUT_S = 3600.0


@dataclass(frozen=True)
class Options:
    """Measure conversion, opening, orders and the first batch of many small images."""

    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")]
    """JPEGs, in any folders below; CIFAR-10 as JPEG files is meant."""
    images: int = 100_000
    """Images of the source."""
    shards: int = 1
    """Files to convert into; 1: one file, without --shards."""
    tar_of_tars: tyro.conf.FlagCreatePairsOff[bool] = False
    """Pack the classes as tars within the tar."""
    tables_only: tyro.conf.FlagCreatePairsOff[bool] = False
    """Write files of 2×2 raw pixels directly, and measure the reading only."""
    workers: int = field(default_factory=cores)
    """Threads of the conversion and of the loader."""
    scratch: Path | None = None
    """Folder for the tar and the files; None: a temporary one. 1.3 million images of CIFAR take 3 GB."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE.json")] = None
    """Where to write the result."""

    def __post_init__(self) -> None:
        check_at_least_1(self, "images", "shards", "workers")
        check_out(self.out)


@dataclass(frozen=True)
class Conversion:
    """A `fastclr convert`, as a command."""

    seconds: float
    """From start to end: the index of the tar, the comparison that is printed, and the writing."""
    images_per_s: float
    peak_bytes: int
    """Largest resident memory of the process."""
    bytes_per_image_beyond_300_mb: float


@dataclass(frozen=True)
class Reading:
    """What a process that reads the files waits for, and takes."""

    open_s: float
    fingerprint_s: float
    first_batch_s: float
    """From the call of ViewLoader on an open reader to the first batch of 256; compiled code is warm."""
    order_s: dict[str, float]
    """Of an epoch, by order."""
    file_bytes: int
    open_bytes_per_image: float
    """Anonymous memory that opening adds."""
    held_bytes_per_image: float
    """Anonymous memory that opening and a first batch add, its buffers included."""
    peak_bytes_per_image: float
    """Beyond that at the start of the measurement: the largest resident memory of all, mapped tables included."""


@dataclass(frozen=True)
class ScaleReport:
    """Conversion and reading at a size."""

    machine: Machine
    images: int
    shards: int
    source: str
    workers: int
    conversion: Conversion | None
    reading: Reading
    benchmark: str = "convert scale"
    derived: ClassVar[tuple[str, ...]] = ()


def main(argv: list[str]) -> None:
    """Run the measurement."""
    options = parse(Options, argv, "python -m benchmarks.convert.scale")
    with tempfile.TemporaryDirectory(prefix="fastclr-scale-", dir=options.scratch) as folder:
        out = Path(folder) / "scale.beton"
        conversion = None
        if options.tables_only:
            source = "2×2 raw pixels"
            write_tables(out, options.images, options.shards)
        else:
            source = "tar of tars" if options.tar_of_tars else "tar"
            tar = write_tar(Path(folder) / "scale.tar", options.folder, options.images, options.tar_of_tars)
            conversion = convert_by_command(tar, out, options)
            tar.unlink()
        files = [out] if out.exists() else [shard_path(out, k, options.shards) for k in range(options.shards)]
        reading = call_in_process(measure_reading, files, options.workers, timeout_s=TIMEOUT_S)
    report = ScaleReport(
        describe_machine(), options.images, options.shards, source, options.workers, conversion, reading
    )
    for part in (conversion, reading):
        for name, value in vars(part).items() if part else ():
            print(f"{name:<30} {value}")
    if options.out is not None:
        save(options.out, report)


def jpegs_of(folder: Path) -> list[bytes]:
    """Return the files' bytes.  ValueError: there is none."""
    paths = itertools.islice(sorted(folder.rglob("*.jp*g")), MAX_SOURCE_FILES)
    if not (found := [path.read_bytes() for path in paths]):
        raise ValueError(f"{folder} holds no JPEG; give a folder of some, such as CIFAR-10's")
    return found


def write_tar(path: Path, folder: Path, num_images: int, of_tars: bool) -> Path:
    """Pack `num_images` images into 1000 classes, the bytes of the folder's files again and again."""
    jpegs = itertools.cycle(jpegs_of(folder))
    bounds = np.linspace(0, num_images, NUM_CLASSES + 1).astype(int).tolist()
    with tarfile.open(path, "w") as tar:
        for number, (first, end) in enumerate(itertools.pairwise(bounds)):
            name = f"n{number:08d}"
            members = ((f"{name}_{k}.JPEG", next(jpegs)) for k in range(first, end))
            if of_tars:
                inner = io.BytesIO()
                with tarfile.open(fileobj=inner, mode="w") as class_tar:
                    _add(class_tar, members)
                _add(tar, [(f"{name}.tar", inner.getvalue())])
            else:
                _add(tar, ((f"train/{name}/{member}", data) for member, data in members))
    return path


def _add(tar: tarfile.TarFile, members: Any) -> None:
    for name, data in members:
        header = tarfile.TarInfo(name)
        header.size = len(data)
        tar.addfile(header, io.BytesIO(data))
        # tarfile keeps a list of all members
        tar.getmembers().clear()


def write_tables(out: Path, num_images: int, num_shards: int) -> None:
    """Write files of so many images of 2×2 raw pixels in all."""
    pixels = np.zeros((2, 2, 3), np.uint8)
    bounds = np.linspace(0, num_images, num_shards + 1).astype(int).tolist()
    for shard, (first, end) in enumerate(itertools.pairwise(bounds)):
        path = out if num_shards == 1 else shard_path(out, shard, num_shards)
        with BetonWriter(path, end - first) as writer:
            for number in range(first, end):
                writer.add_raw(pixels, number % NUM_CLASSES)


def convert_by_command(tar: Path, out: Path, options: Options) -> Conversion:
    """Run `fastclr convert` and return what it took."""
    command = [sys.executable, "-m", "fastclr.cli.main", "convert", str(tar), str(out)]
    command += ["--workers", str(options.workers)]
    command += ["--shards", str(options.shards)] if options.shards > 1 else []
    start = time.monotonic()
    with tempfile.TemporaryFile("w+") as printed:
        process = subprocess.Popen(command, stdout=printed, stderr=subprocess.STDOUT)
        peak = 0
        # not by wait4: its figure begins with the memory of the process that started the command
        while process.poll() is None:
            peak = max(peak, _status("VmHWM", process.pid))
            time.sleep(0.02)
        seconds = time.monotonic() - start
        if process.returncode:
            printed.seek(0)
            raise OSError(f"fastclr convert failed: {printed.read()}")
    beyond = (peak - 300e6) / options.images
    return Conversion(seconds, options.images / seconds, peak, beyond)


def measure_reading(files: list[Path], workers: int) -> Reading:
    """Open the files and take a batch; in a process of its own."""
    from pipelines import ViewLoader

    def first_batch(reader: BetonReader) -> float:
        begin = time.perf_counter()
        with ViewLoader(reader, min(256, len(reader)), size=32, num_threads=workers) as loader:
            next(iter(loader))
        return time.perf_counter() - begin

    # compiled code and libraries are loaded, so that they count neither in time nor in memory
    with tempfile.TemporaryDirectory() as folder:
        write_tables(Path(folder) / "warm.beton", 64, 1)
        with BetonReader(Path(folder) / "warm.beton") as reader:
            first_batch(reader)
    before, low = _anonymous_bytes(), _reset_peak()
    begin = time.perf_counter()
    reader = BetonReader(files)
    open_s, opened = time.perf_counter() - begin, _anonymous_bytes()
    begin = time.perf_counter()
    _ = reader.fingerprint
    fingerprint_s = time.perf_counter() - begin
    first_batch_s = first_batch(reader)
    peak, held = _status("VmHWM") - low, _anonymous_bytes()
    return Reading(
        open_s,
        fingerprint_s,
        first_batch_s,
        dict(_order_times(len(reader))),
        reader.file_bytes,
        (opened - before) / len(reader),
        (held - before) / len(reader),
        peak / len(reader),
    )


def _order_times(num_samples: int) -> Iterator[tuple[str, float]]:
    for order in ORDERS:
        begin = time.perf_counter()
        epoch_order(num_samples, 0, 0, order)
        yield order, time.perf_counter() - begin


def _anonymous_bytes() -> int:
    return _status("RssAnon")


def _reset_peak() -> int:
    """Have the kernel forget the process's largest resident memory so far; return the present one."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _status(name: str, process: int | str = "self") -> int:
    """Return a number of /proc/PROCESS/status, bytes; 0 where it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), 0) * 1024


if __name__ == "__main__":
    main(sys.argv[1:])
