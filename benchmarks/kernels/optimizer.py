"""`fastclr bench optimizer`: a LARS step on a ResNet's parameters, ours beside lightly's and timm's."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from benchmarks.kernels.inputs import random_parameters
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
from benchmarks.kernels.roofline import lars_floor_s
from benchmarks.kernels.timing import Function, NotMeasured, Variant, check_cuda, measure, require
from fastclr.arguments import parse
from fastclr.device import pick_device
from fastclr.optim import LARS

COLUMNS: tuple[Column, ...] = (("MiB", "peak_bytes", "bytes"), ("of floor", "floor_share", "share"))
SETTINGS: dict[str, Any] = {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-6}


@dataclass(frozen=True, kw_only=True)
class Options(TimedOptions):
    """One LARS step on a ResNet's parameters: ours, lightly's and timm's, in turns."""

    model: str | None = None
    """A torchvision ResNet, whose parameters are taken; None: resnet50 on a GPU, resnet18 on a CPU."""


def main(argv: list[str]) -> None:
    run(parse(Options, argv, "fastclr bench optimizer"))


def run(options: Options) -> KernelReport:
    """Measure, print, and return the report.

    Raises:
        ValueError, OSError: an option that does not fit; the message says which.
    """
    device, console = pick_device(options.device), Console()
    model = options.model or ("resnet50" if device.type == "cuda" else "resnet18")
    shapes = resnet_shapes(model)
    num_params = sum(shape.numel() for shape in shapes)
    settings = {**asdict(options), **SETTINGS, "model": model, "num_params": num_params}
    report = new_report("optimizer", {**settings, "out": None, "device": str(device)})
    rows = measure(_variants(shapes, device), device, rounds=options.rounds, turn_s=options.turn_s)
    judged = {"fastclr fused, graph": "lars-resnet50"} if model == "resnet50" else {}
    rows = [with_floor(row, lars_floor_s(num_params), judged.get(row.name)) for row in rows]
    title = f"LARS step, {model}: {num_params / 1e6:.1f} M parameters in {len(shapes)} tensors"
    group = KernelGroup(title, rows, num_params=num_params)
    report = with_group(report, options.out, group)
    print_group(console, group, COLUMNS)
    print_targets(console, report)
    return report


def resnet_shapes(name: str) -> list[torch.Size]:
    """Return the shapes of all parameters of a torchvision ResNet, in its order.

    Raises:
        ValueError: torchvision has no such ResNet.
    """
    from torchvision import models

    if not name.startswith("resnet") or name not in models.list_models(models):
        known = [known for known in models.list_models(models) if known.startswith("resnet")]
        raise ValueError(f"--model is {name!r}; it must be one of {', '.join(known)}")
    with torch.device("meta"):
        return [parameter.shape for parameter in models.get_model(name).parameters()]


def _variants(shapes: list[torch.Size], device: torch.device) -> list[Variant]:
    def variant(
        name: str, make: Callable[[list[Tensor]], torch.optim.Optimizer], graph: bool = False, note: str = ""
    ) -> Variant:
        def prepare() -> Function:
            return make(random_parameters(shapes, device)).step

        return Variant(name, prepare, graph, note=note)

    def ours(impl: str) -> Callable[[list[Tensor]], torch.optim.Optimizer]:
        def make(params: list[Tensor]) -> torch.optim.Optimizer:
            if impl == "fused":
                check_cuda(device)
            if impl == "apex":
                _need_apex()
            return LARS(params, impl=impl, **SETTINGS)

        return make

    def lightly(params: list[Tensor]) -> torch.optim.Optimizer:
        require("lightly")
        from lightly.utils.lars import LARS as LightlyLARS

        return LightlyLARS(params, **SETTINGS)

    def timm(foreach: bool | None) -> Callable[[list[Tensor]], torch.optim.Optimizer]:
        def make(params: list[Tensor]) -> torch.optim.Optimizer:
            require("timm")
            from timm.optim import Lars

            return Lars(params, **SETTINGS, **({} if foreach is None else {"foreach": foreach}))

        return make

    return [
        variant("fastclr reference", ours("reference"), note="foreach operations"),
        variant("fastclr fused", ours("fused")),
        variant("fastclr fused, graph", ours("fused"), graph=True),
        variant("fastclr apex", ours("apex"), note="norms by NVIDIA apex"),
        variant("lightly LARS", lightly, note="a loop over the tensors"),
        variant("timm Lars", timm(False), note="a loop over the tensors"),
        variant("timm Lars, as made", timm(None), note="its own choice of a loop or foreach"),
    ]


def _need_apex() -> None:
    try:
        import amp_C  # noqa: F401
    except ImportError:
        raise NotMeasured(
            "NVIDIA apex is not installed; no index has it: docker run --gpus all nvcr.io/nvidia/pytorch:25.06-py3"
        ) from None
