"""`fastclr bench augment`: color jitter, grayscale, blur and normalisation of uint8 crops that lie on the device.

Everybody gets the same crops [N, S, S, 3] and gives normalised views.  Ours and kornia draw for every view; ours
has its numbers drawn beforehand, kornia draws within the call, torchvision draws once per batch.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import torch
from rich.console import Console
from torch import Tensor

from benchmarks.core.report import check_at_least_1
from benchmarks.kernels.inputs import DrawnCrops, drawn_crops
from benchmarks.kernels.options import TimedOptions
from benchmarks.kernels.report import (
    Column,
    KernelGroup,
    KernelReport,
    new_report,
    print_group,
    print_targets,
    with_floor,
    with_group,
)
from benchmarks.kernels.roofline import augment_floor_s
from benchmarks.kernels.timing import Function, KernelRow, Variant, check_cuda, measure, require
from fastclr.arguments import parse
from fastclr.device import pick_device
from pipelines.ops.augment import reference
from pipelines.system.threads import torch_threads
from pipelines.views import ViewSpec

COLUMNS: tuple[Column, ...] = (
    ("images/s", "images_per_s", "count"),
    ("views/s", "views_per_s", "count"),
    ("MiB", "peak_bytes", "bytes"),
    ("of floor", "floor_share", "share"),
)


@dataclass(frozen=True, kw_only=True)
class Options(TimedOptions):
    """Augmentation of crops that lie on the device: ours, kornia's and torchvision's, in turns."""

    sizes: tuple[int, ...] = (32, 96, 224)
    """Heights and widths of a view, pixels."""
    batch_size: int | None = None
    """Images, with two views each; None: 256 on a GPU, 8 on a CPU."""
    threads: int = 1
    """Threads of torch's own operations on a CPU; ours is one thread, of which the loader runs many."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least_1(self, "threads", "batch_size")


def main(argv: list[str]) -> None:
    run(parse(Options, argv, "fastclr bench augment"))


def run(options: Options) -> KernelReport:
    """Measure, print, and return the report.

    Raises:
        ValueError, OSError: an option that does not fit; the message says which.
    """
    device, console = pick_device(options.device), Console()
    on_gpu = device.type == "cuda"
    batch_size = options.batch_size or (256 if on_gpu else 8)
    dtype = torch.bfloat16 if on_gpu else torch.float32
    settings = {**asdict(options), "batch_size": batch_size, "dtype": str(dtype)}
    report = new_report("augment", {**settings, "out": None, "device": str(device)})
    with torch_threads(options.threads):
        for size in sorted(options.sizes, reverse=True):  # the size with a goal first
            rows = _measure_size(size, batch_size, dtype, device, options)
            title = f"{batch_size} images, two views each, of {size} px"
            group = KernelGroup(title, rows, size=size, batch_size=batch_size)
            report = with_group(report, options.out, group)
            print_group(console, group, COLUMNS)
    print_targets(console, report)
    return report


def _measure_size(
    size: int, batch_size: int, dtype: torch.dtype, device: torch.device, options: Options
) -> list[KernelRow]:
    spec = ViewSpec.simclr(size)
    crops = drawn_crops(spec, batch_size, device)
    variants = _variants(crops, spec, dtype, device)
    num_views = spec.num_views * batch_size
    floor = augment_floor_s(num_views, size, dtype.itemsize)
    rows = []
    for row in measure(variants, device, rounds=options.rounds, turn_s=options.turn_s):
        target = f"augment-{size}" if row.name == "fastclr gpu, graph" else None
        if row.median_s is not None:
            row = replace(row, images_per_s=batch_size / row.median_s, views_per_s=num_views / row.median_s)
        rows.append(with_floor(row, floor, target))
    return rows


def _variants(crops: DrawnCrops, spec: ViewSpec, dtype: torch.dtype, device: torch.device) -> list[Variant]:
    pixels = torch.as_tensor(crops.pixels)

    def cpu() -> Function:
        from pipelines.ops.augment import cpu

        return lambda: cpu.augment(crops.pixels, crops.plan.params, spec, dtype)

    def gpu() -> Function:
        check_cuda(device)
        require("triton", "triton")
        from pipelines.ops.augment import gpu

        return lambda: gpu.augment(pixels, crops.plan.params, spec, dtype)

    def gpu_table() -> Function:
        check_cuda(device)
        require("triton", "triton")
        from pipelines.ops.augment import gpu

        table = gpu.params_table(crops.plan.params, spec).to(device)
        return lambda: gpu.augment(pixels, table, spec, dtype)

    def peer(make: Callable[[ViewSpec], Callable[[Tensor], Tensor]]) -> Callable[[], Function]:
        def prepare() -> Function:
            transform = make(spec)
            # planes of [N, 3, S, S], as both libraries ask for
            planes = pixels.flatten(0, 1).permute(0, 3, 1, 2).contiguous()
            return lambda: transform(planes).to(dtype)

        return prepare

    ours = [
        Variant(
            "fastclr reference",
            lambda: lambda: reference.augment(crops.pixels, crops.plan.params, spec, dtype),
            note="plain torch",
        ),
        Variant("fastclr gpu", gpu, note="with packing and upload of the drawn numbers"),
        Variant("fastclr gpu, graph", gpu_table, graph=True, note="drawn numbers uploaded beforehand"),
    ]
    if device.type == "cpu":
        ours.insert(1, Variant("fastclr cpu", cpu, note="one thread"))
    blur = "" if spec.blur_p else "no blur at this size"
    return [
        *ours,
        Variant("kornia", peer(kornia_simclr), note=blur),
        Variant(
            "torchvision v2",
            peer(torchvision_simclr),
            note="; ".join(filter(None, ["draws once per batch", blur])),
        ),
    ]


def kornia_simclr(spec: ViewSpec) -> Callable[[Tensor], Tensor]:
    """kornia's batched transforms, drawn for every view, of uint8 [N, 3, S, S]."""
    require("kornia")
    from kornia import augmentation as K

    s, k = spec.jitter_strength, spec.blur_kernel
    blur = [K.RandomGaussianBlur((k, k), spec.blur_sigma, p=spec.blur_p)] if spec.blur_p else []
    chain = K.AugmentationSequential(
        K.ColorJitter(0.8 * s, 0.8 * s, 0.8 * s, 0.2 * s, p=spec.jitter_p),
        K.RandomGrayscale(p=spec.gray_p),
        *blur,
        K.Normalize(torch.tensor(spec.mean), torch.tensor(spec.std)),
        data_keys=["input"],
    )
    return lambda pixels: chain(pixels.float() / 255)


def torchvision_simclr(spec: ViewSpec) -> Callable[[Tensor], Tensor]:
    """torchvision's transforms v2 on a batch, uint8 [N, 3, S, S]: one draw for all of its views."""
    from torchvision.transforms import v2

    s = spec.jitter_strength
    blur = (
        [v2.RandomApply([v2.GaussianBlur(spec.blur_kernel, spec.blur_sigma)], p=spec.blur_p)]
        if spec.blur_p
        else []
    )
    return v2.Compose(
        [
            v2.ToDtype(torch.float32, scale=True),
            v2.RandomApply([v2.ColorJitter(0.8 * s, 0.8 * s, 0.8 * s, 0.2 * s)], p=spec.jitter_p),
            v2.RandomGrayscale(p=spec.gray_p),
            *blur,
            v2.Normalize(spec.mean, spec.std),
        ]
    )
