"""Measures how far the engines' crops are from torchvision's.

    python -m benchmarks.loaders.agreement FILE.beton --out FILE.json

The reference is the engine `torchvision`: PIL decodes, `resized_crop` in float with antialiasing, rounded, flip.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro

from benchmarks.core.machine import Machine, describe_machine
from benchmarks.core.report import check_out, save
from benchmarks.kernels.targets import NOT_MEASURED
from benchmarks.loaders.report import AgreementReport, AgreementRow, AgreementSettings
from fastclr.arguments import parse
from fastclr.device import pick_device
from pipelines import BetonReader, EngineUnavailable, ViewLoader
from pipelines.engines import EngineName

ENGINES_ON: dict[str, tuple[EngineName, ...]] = {
    "cpu": ("native", "resident", "ffcv", "dali"),
    "cuda": ("resident", "dali"),
}


@dataclass(frozen=True)
class Options:
    """Compare the engines' crops with torchvision's, over two SimCLR views of every image of a file."""

    file: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE.beton")]
    """Images; `fastclr convert` makes the file."""
    engines: tuple[Literal["native", "resident", "ffcv", "dali"], ...] | None = None
    """Engines to compare; None: all that crop on the device."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where to crop; on a GPU `dali` decodes with nvJPEG there, too."""
    size: int = 224
    """Height and width of a view, pixels."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE.json")] = None
    """Where to write the result."""

    def __post_init__(self) -> None:
        check_out(self.out)
        pick_device(self.device)
        if others := set(self.engines or ()) - set(ENGINES_ON[self.device]):
            raise ValueError(f"engine {others.pop()} crops on the CPU, whatever the device")


def main(argv: list[str]) -> None:
    """Measure, print, and write the result."""
    options = parse(Options, argv, "python -m benchmarks.loaders.agreement")
    with BetonReader(options.file) as reader:
        expected = crops(reader, "torchvision", options.size)
        engines = options.engines or ENGINES_ON[options.device]
        rows = [compare(reader, name, options.size, expected, options.device) for name in engines]
        settings = AgreementSettings(options.device, options.size, 2 * len(reader), len(reader))
        report = AgreementReport(describe_machine(), settings, rows)
    print(agreement_table([report]))
    if options.out is not None:
        save(options.out, report)
        print(f"wrote {options.out}")


def crops(reader: BetonReader, engine: EngineName, size: int, device: str = "cpu") -> list[np.ndarray]:
    """Return the first epoch's crops of a run with seed 0: uint8 [V, B, size, size, 3] per batch."""
    with ViewLoader(
        reader, 25, size=size, engine=engine, augment=False, device=device, drop_last=False
    ) as loader:
        return [batch.views.cpu().numpy() for batch in loader]


def compare(
    reader: BetonReader, engine: EngineName, size: int, expected: list[np.ndarray], device: str = "cpu"
) -> AgreementRow:
    """Compare an engine's crops with those that are expected."""
    try:
        found = crops(reader, engine, size, device)
    except EngineUnavailable as error:
        return AgreementRow(engine, str(error))
    inside = ring = 0
    total = count = 0
    for engine_crops, reference_crops in zip(found, expected, strict=True):
        off = np.abs(engine_crops.astype(np.int16) - reference_crops)
        total, count = total + int(off.sum()), count + off.size
        inside = max(inside, int(off[:, :, 1:-1, 1:-1].max()))
        off[:, :, 1:-1, 1:-1] = 0
        ring = max(ring, int(off.max()))
    return AgreementRow(engine, "", inside, ring, total / count)


def agreement_table(reports: list[AgreementReport]) -> str:
    """Return Markdown: a row per engine and device."""
    lines = [
        "| engine | largest difference, gray levels | in the outermost row and column | mean |",
        "|---|---:|---:|---:|",
    ]
    for report in reports:
        where = "" if report.settings.device == "cpu" else ", on a GPU"
        for row in report.results:
            cells = [NOT_MEASURED] * 3
            if not row.error:
                cells = [str(row.inside), str(row.ring), f"{row.mean:.4f}"]
            lines.append(f"| `{row.name}`{where} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def unmeasured(device: str) -> AgreementReport:
    """Return a report for `agreement_table` where there is none."""
    rows = [AgreementRow(name, NOT_MEASURED) for name in ENGINES_ON[device]]
    return AgreementReport(Machine(), AgreementSettings(device), rows)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (ValueError, OSError) as error:
        sys.exit(f"benchmarks.loaders.agreement: {error}")
