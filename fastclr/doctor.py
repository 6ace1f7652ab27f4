"""Checks what fastclr can use on this machine: packages, hardware, engines, kernels, speed of disk and decoder.

A check never raises: whatever can't run becomes a row with the reason and the one command that fixes it.
"""

import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from importlib import util
from pathlib import Path

import numpy as np
import torch

from fastclr.speeds import decode_rate, disk_speed, drawn_jpeg
from pipelines import BetonReader, BetonWriter, ViewSpec
from pipelines.engines import ENGINES, EngineName
from pipelines.engines.ffcv import engine as ffcv
from pipelines.engines.native import turbojpeg
from pipelines.planner import BatchPlanner
from pipelines.system.cpus import cores
from pipelines.system.jit import cache_folder
from pipelines.system.terminal import one_line
from pipelines.system.triton import why_no_triton
from pipelines.system.versions import package_version

NVIDIA_VENDOR = "0x10de"
"""Vendor number of NVIDIA's PCI devices."""


CACHE_FIX = "export NUMBA_CACHE_DIR=FOLDER  # one that you can write"
TMPDIR_FIX = "export TMPDIR=FOLDER  # one that you can write"


@dataclass(frozen=True)
class Check:
    """One row of the doctor's report."""

    group: str
    name: str
    ok: bool
    detail: str
    """A version, a measurement, or the reason why it can't run."""
    fix: str = ""
    """The command that makes it run, or the action where no command helps."""


def examine(file: Path | None = None) -> Iterator[Check]:
    """Run all checks, in the order of the report.

    Args:
        file: a `.beton` file or a set whose images and disk are used for the speed tests; None: a drawn image, and a
            temporary file.

    Raises:
        ValueError, OSError: `file` can't be read; raised before the first check.
    """
    reader = BetonReader(file) if file is not None else None
    return _checks(reader)


def _checks(reader: BetonReader | None) -> Iterator[Check]:
    try:
        yield from _machine()
        yield from _packages()
        yield from _engines()
        yield from _kernels()
        yield from _speeds(reader)
    finally:
        if reader is not None:
            reader.close()


def _machine() -> Iterator[Check]:
    yield Check("machine", "python", True, f"{platform.python_version()}, {platform.system()}")
    yield Check("machine", "processors", True, f"{cores()}")
    driver = _driver()
    yield Check(
        "machine",
        "NVIDIA driver",
        driver is not None,
        driver or "none",
        "" if driver else _gpu_fix(),
    )
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            found = torch.cuda.get_device_properties(number)
            detail = f"{found.name}, {found.total_memory / 2**30:.0f} GiB, sm_{found.major}{found.minor}"
            yield Check("machine", f"GPU {number}", True, detail)
    else:
        yield Check("machine", "GPU", False, "torch sees none", _gpu_fix())


def _gpu_fix() -> str:
    """Return the command or action that makes torch see a GPU."""
    vendors = Path("/sys/bus/pci/devices").glob("*/vendor")
    if _driver() is None:
        if any(vendor.read_text().strip() == NVIDIA_VENDOR for vendor in vendors):
            return "sudo apt-get install nvidia-driver"
        return "this machine has no NVIDIA GPU: use one that has"
    if torch.version.cuda is None:
        return "pip install --upgrade --force-reinstall torch  # this build of torch is for CPUs"
    return (
        f"sudo apt-get install --only-upgrade nvidia-driver  # torch needs one for CUDA {torch.version.cuda}"
    )


@cache
def _driver() -> str | None:
    if shutil.which("nvidia-smi") is None:
        return None
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(asked, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.split("\n")[0].strip() or None if done.returncode == 0 else None


def _packages() -> Iterator[Check]:
    cuda = torch.version.cuda
    yield Check("packages", "torch", True, f"{torch.__version__}, {f'CUDA {cuda}' if cuda else 'CPU only'}")
    fixes = {
        "torchvision": "pip install torchvision",
        "numba": "pip install numba",
        "simplejpeg": "pip install simplejpeg",
        "triton": "pip install triton",
        "ffcv": ffcv.INSTALL,
        _dali_package(): _dali_fix(),
        "lightly": "pip install lightly",
        "timm": "pip install timm",
        "kornia": "pip install kornia",
    }
    for name, fix in fixes.items():
        version = package_version(name)
        yield Check("packages", name, version is not None, version or "not installed", "" if version else fix)
    try:
        turbojpeg.bind_turbojpeg()
        yield Check("packages", "libturbojpeg", True, "the system's; native decodes with it")
    except OSError:
        missing = "not found; optional, native decodes with simplejpeg, slower on small images"
        yield Check("packages", "libturbojpeg", False, missing, turbojpeg.INSTALL)
    has_apex = util.find_spec("amp_C") is not None
    yield Check(
        "packages",
        "apex (amp_C)",
        has_apex,
        "installed" if has_apex else "not installed; optional, no package index has it",
        "" if has_apex else "run inside NVIDIA's NGC PyTorch image, which ships it",
    )


def _dali_package() -> str:
    """Return the DALI package that is installed, or else the one for torch's CUDA."""
    names = ["nvidia-dali-cuda130", "nvidia-dali-cuda120"]
    preferred = names[0] if (torch.version.cuda or "").startswith("13") else names[1]
    return next((name for name in names if package_version(name)), preferred)


def _dali_fix() -> str:
    extra = "dali-cuda13" if _dali_package().endswith("130") else "dali"
    return f"pip install 'fastclr[{extra}]'"


def _engines() -> Iterator[Check]:
    """Let every engine make one batch; the ffcv engine is only constructed, because it would compile for seconds."""
    fixes = {"ffcv": ffcv.INSTALL, "dali": _dali_fix()}
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    try:
        scratch = tempfile.TemporaryDirectory(prefix="fastclr-doctor-")
    except OSError as error:
        for name in ENGINES:
            yield Check("engines", name, False, f"not tried: {error}", TMPDIR_FIX)
        return
    with scratch as folder:
        file = Path(folder) / "drawn.beton"
        jpeg = drawn_jpeg()
        with BetonWriter(file, 4) as writer:
            for label in range(4):
                writer.add_jpeg(jpeg, label)
        with BetonReader(file) as reader:
            planner = BatchPlanner(reader.heights, reader.widths, (ViewSpec.simclr(32),), 4)
            for name in ENGINES:
                for device in devices if name in ("resident", "dali") else devices[:1]:
                    title = name if device == "cpu" else f"{name} on the GPU"
                    run = partial(_one_batch, name, reader, planner, device)
                    yield _attempt("engines", title, run, fixes.get(name, "pip install fastclr"))


def _one_batch(name: EngineName, reader: BetonReader, planner: BatchPlanner, device: str) -> str:
    engine = ENGINES[name](reader, planner, num_threads=1, device=torch.device(device))
    try:
        if name == "ffcv":
            return "installed; not run, it compiles for some seconds"
        count = sum(len(crops.plan.indices) for crops in engine.run(planner.plans(0), planner))
    finally:
        engine.close()
    if count != len(reader):
        raise ValueError(f"gave {count} images of {len(reader)}")
    return "runs"


def _kernels() -> Iterator[Check]:
    def on_cpu() -> str:
        import numba

        import pipelines.ops.augment.cpu
        import pipelines.ops.crop.cpu  # noqa: F401

        return f"numba {numba.__version__}"

    yield _attempt("kernels", "crop and augmentation on the CPU", on_cpu, "pip install fastclr")
    yield _compiled_code()
    for name, run in (
        ("augmentation on the GPU", _augment_on_gpu),
        ("NT-Xent, fused", _nt_xent_on_gpu),
        ("LARS, fused", _lars_on_gpu),
    ):
        if torch.cuda.is_available():
            yield _attempt("kernels", name, run, _kernel_fix())
        else:
            yield Check(
                "kernels",
                name,
                False,
                "needs a GPU; the plain form runs instead",
                _gpu_fix(),
            )


def _compiled_code() -> Check:
    """Check where the machine code of the CPU kernels is kept."""
    from pipelines.ops.crop.cpu import crop_resize

    folder = cache_folder(crop_resize)
    detail = (
        f"kept in {folder}" if folder else "no folder to keep it in: every run compiles for up to a minute"
    )
    return Check("kernels", "compiled code", folder is not None, detail, "" if folder else CACHE_FIX)


def _kernel_fix() -> str:
    reason = why_no_triton()  # ends with the command
    return reason.rpartition(": ")[2] if reason else "use a GPU of compute capability 8.0 or more"


def _augment_on_gpu() -> str:
    from pipelines.ops.augment import gpu
    from pipelines.views import draw_views

    spec = ViewSpec.simclr(64)
    size = np.full(2, 64)
    params = draw_views(spec, 0, 0, np.arange(2), size, size)
    views = gpu.augment(torch.zeros(2, 2, 64, 64, 3, dtype=torch.uint8, device="cuda"), params, spec)
    return _finite(views)


def _nt_xent_on_gpu() -> str:
    from fastclr.loss import nt_xent

    return _finite(nt_xent(torch.randn(8, 128, device="cuda"), 0.1, impl="fused"))


def _lars_on_gpu() -> str:
    from fastclr.optim import LARS

    weight = torch.ones(4, 4, device="cuda", requires_grad=True)
    optimizer = LARS([weight], 0.1, impl="fused")
    weight.square().sum().backward()
    optimizer.step()
    return _finite(weight)


def _finite(result: torch.Tensor) -> str:
    if not bool(result.isfinite().all()):
        raise ValueError("gave numbers that are not finite")
    return "runs"


def _attempt(group: str, name: str, run: Callable[[], str], fix: str) -> Check:
    try:
        return Check(group, name, True, run())
    except Exception as error:  # a broken installation must not hide the other rows
        reason = one_line(error).removesuffix(f": {fix}") or type(error).__name__
        return Check(group, name, False, reason, fix)


def _speeds(reader: BetonReader | None) -> Iterator[Check]:
    jpegs, what = _jpegs(reader)
    for threads in dict.fromkeys((1, cores())):
        yield _attempt(
            "speed",
            f"decoder, {threads} thread{'s' if threads > 1 else ''}",
            partial(_decoder_speed, jpegs, threads, what),
            "pip install --force-reinstall simplejpeg",
        )

    def disk() -> str:
        if reader is not None:
            return disk_speed(reader.files[0])
        with tempfile.NamedTemporaryFile(prefix="fastclr-doctor-") as file:
            file.write(os.urandom(1 << 20) * 64)
            file.flush()
            os.fsync(file.fileno())  # the page cache can drop only what has been written to the disk
            return f"{disk_speed(Path(file.name))}, in {Path(file.name).parent}"

    yield _attempt("speed", "disk", disk, "fastclr doctor --file FILE.beton  # with a file that can be read")


def _decoder_speed(jpegs: list[bytes], threads: int, what: str) -> str:
    rate = decode_rate(jpegs, threads)
    return f"{rate:,.0f} images/s, {f'{rate / threads:,.0f} per thread' if threads > 1 else what}"


def _jpegs(reader: BetonReader | None) -> tuple[list[bytes], str]:
    """Return the JPEGs to decode, and a description of them."""
    if reader is None:
        return [drawn_jpeg()], "a drawn image, 500×375"
    first = range(min(64, len(reader)))
    found = [bytes(reader.image_bytes(index)) for index in first if _is_intact_jpeg(reader, index)]
    if found:
        return found, f"{len(found)} images of {reader.path.name}"
    return [
        drawn_jpeg()
    ], f"a drawn image: none of the first {len(first)} of {reader.path.name} is an intact JPEG"


def _is_intact_jpeg(reader: BetonReader, index: int) -> bool:
    try:
        reader.decode(index)
    except ValueError:
        return False
    return reader.is_jpeg(index)
