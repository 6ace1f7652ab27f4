"""`fastclr bench loss`: NT-Xent forward and backward, ours beside lightly's and plain torch's.

All get the same un-normalised z [M, D], view 0 first, and give its gradient; the error is that of the gradient,
‖g − g₆₄‖ / ‖g₆₄‖, against our reference form in float64.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
import tyro
from rich.console import Console
from torch import Tensor

from benchmarks.core.report import check_at_least_1
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
from benchmarks.kernels.roofline import nt_xent_floor_s
from benchmarks.kernels.targets import LOSS
from benchmarks.kernels.timing import Function, KernelRow, Variant, check_cuda, measure, require
from fastclr.arguments import parse
from fastclr.device import pick_device
from fastclr.loss import nt_xent

COLUMNS: tuple[Column, ...] = (
    ("MiB", "peak_bytes", "bytes"),
    ("error", "gradient_error", "error"),
    ("of floor", "floor_share", "share"),
)
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class Options(TimedOptions):
    """NT-Xent forward and backward: ours, lightly's and plain torch's, in turns."""

    rows: Annotated[
        tuple[int, ...],
        tyro.conf.arg(help_behavior_hint="(default: 1024 to 65536 on a GPU, 256 to 1024 on a CPU)"),
    ] = ()
    """Rows M of z, both views."""
    width: int = 128
    """Width D of z."""
    temperature: float = 0.1
    """τ, which divides the similarities."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Type of z."""
    compile: bool = True
    """Measure plain torch under torch.compile too, which takes a while to compile."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if any(rows < 4 or rows % 2 for rows in self.rows):
            raise ValueError(f"--rows are both views of n images: even, and 4 or more; got {self.rows}")
        check_at_least_1(self, "width")
        if not self.temperature > 0:
            raise ValueError(f"--temperature is {self.temperature}; it must be positive")


def main(argv: list[str]) -> None:
    run(parse(Options, argv, "fastclr bench loss"))


def run(options: Options) -> KernelReport:
    """Measure, print, and return the report.

    Raises:
        ValueError, OSError: an option that does not fit; the message says which.
    """
    device, console = pick_device(options.device), Console()
    # the sizes with a goal first: a run that is cut short has them
    sizes = options.rows or ((*LOSS, 1024, 4096, 32768) if device.type == "cuda" else (256, 512, 1024))
    report = new_report("loss", {**asdict(options), "rows": sizes, "out": None, "device": str(device)})
    for num_rows in sizes:
        title = f"NT-Xent, {num_rows} rows of {options.width}"
        group = KernelGroup(title, _measure_rows(options, num_rows, device), num_rows=num_rows)
        report = with_group(report, options.out, group)
        print_group(console, group, COLUMNS)
    print_targets(console, report)
    return report


def _measure_rows(options: Options, num_rows: int, device: torch.device) -> list[KernelRow]:
    z = correlated_pairs(num_rows // 2, options.width).to(device, DTYPES[options.dtype]).requires_grad_()

    @cache
    def truth() -> Tensor:
        exact = z.detach().double().requires_grad_()
        return torch.autograd.grad(nt_xent(exact, options.temperature, impl="reference"), exact)[0]

    def error(gradient: Tensor) -> dict[str, Any]:
        if not gradient.isfinite().all():
            raise ValueError("its gradient is not finite")
        return {"gradient_error": float((gradient.double() - truth()).norm() / truth().norm())}

    def variant(
        name: str, make: Callable[[], Callable[[Tensor], Tensor]], graph: bool = False, note: str = ""
    ) -> Variant:
        return Variant(name, lambda: _differentiated(make(), z), graph, error, note)

    def fused() -> Callable[[Tensor], Tensor]:
        check_cuda(device)
        return lambda z: nt_xent(z, options.temperature, impl="fused")

    def lightly() -> Callable[[Tensor], Tensor]:
        require("lightly")
        from lightly.loss import NTXentLoss

        criterion = NTXentLoss(options.temperature)
        return lambda z: criterion(*z.chunk(2))

    def plain(dtype: torch.dtype | None = None) -> Callable[[Tensor], Tensor]:
        return lambda z: plain_nt_xent(z, options.temperature, dtype)

    variants = [
        variant("fastclr reference", lambda: lambda z: nt_xent(z, options.temperature, impl="reference")),
        variant("fastclr fused", fused),
        variant("fastclr fused, graph", fused, graph=True),
        variant("lightly NTXentLoss", lightly),
        variant("torch, eager", plain),
    ]
    if options.compile:
        variants += [
            variant("torch, compiled", lambda: torch.compile(plain())),
            variant(
                "torch, compiled, bf16",
                lambda: torch.compile(plain(torch.bfloat16)),
                note="product in bfloat16, softmax in float32",
            ),
        ]
    rows = measure(variants, device, rounds=options.rounds, turn_s=options.turn_s)
    floor = nt_xent_floor_s(num_rows, options.width, z.element_size())
    judged = {"fastclr fused, graph": f"loss-{num_rows}"} if options.width == 128 else {}
    return [with_floor(row, floor, judged.get(row.name)) for row in rows]


def correlated_pairs(n: int, width: int, seed: int = 0) -> Tensor:
    """Return float32 [2n, width]: rows of uneven length whose positives are nearer than their negatives."""
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn(n, width, generator=generator)
    second = first + 0.5 * torch.randn(n, width, generator=generator)
    return torch.cat([first, second]) * torch.rand(2 * n, 1, generator=generator).add(0.1)


def plain_nt_xent(z: Tensor, temperature: float, product_dtype: torch.dtype | None = None) -> Tensor:
    """Compute NT-Xent as it is commonly written, with the whole M × M matrix.

    Args:
        z: [M, D], view 0 first.
        temperature: τ.
        product_dtype: of the matrix product; None: that of z.
    """
    z = F.normalize(z, dim=1)
    z = z if product_dtype is None else z.to(product_dtype)
    logits = (z @ z.T).float() / temperature
    rows = torch.arange(len(z), device=z.device)
    logits = logits.masked_fill(rows[:, None] == rows, float("-inf"))
    return F.cross_entropy(logits, (rows + len(z) // 2) % len(z))


def _differentiated(loss: Callable[[Tensor], Tensor], z: Tensor) -> Function:
    return lambda: torch.autograd.grad(loss(z), z)[0]
