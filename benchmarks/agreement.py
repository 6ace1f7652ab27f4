"""How far the engines' crops are from torchvision's: `python -m benchmarks.agreement FILE.beton --out FILE.json`.

The reference is the engine `torchvision`: PIL decodes, `resized_crop` in float with antialiasing, rounded, flip.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro

from benchmarks.machine import describe
from benchmarks.report import check_out, save
from fastclr.arguments import parse
from pipelines import BetonReader, EngineUnavailable, ViewSpec
from pipelines.engines import ENGINES
from pipelines.host import cores
from pipelines.order import Sampler


@dataclass(frozen=True)
class Options:
    """Compare the engines' crops with torchvision's, over two SimCLR views of every image of a file."""

    file: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE.beton")]
    """Images; `fastclr convert` makes the file."""
    engines: tuple[Literal["native", "resident", "ffcv", "dali"], ...] = (
        "native",
        "resident",
        "ffcv",
        "dali",
    )
    """Engines to compare, on the CPU."""
    size: int = 224
    """Height and width of a view, pixels."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE.json")] = None
    """Where to write the result."""

    def __post_init__(self) -> None:
        check_out(self.out)


def main(argv: list[str]) -> None:
    """Measure, print, and write the result."""
    options = parse(Options, argv, "python -m benchmarks.agreement")
    with BetonReader(options.file) as reader:
        expected = crops(reader, "torchvision", options.size)
        rows = [compare(reader, name, options.size, expected) for name in options.engines]
        report: dict[str, Any] = {
            "benchmark": "agreement",
            "machine": describe(),
            "settings": {"size": options.size, "views": 2 * len(reader), "images": len(reader)},
            "results": rows,
        }
    print(agreement_table(report))
    if options.out is not None:
        save(options.out, report)
        print(f"wrote {options.out}")


def crops(reader: BetonReader, engine: str, size: int) -> list[np.ndarray]:
    """The first epoch's crops of a run with seed 0: uint8 [V, B, size, size, 3] a batch."""
    sampler = Sampler(reader.heights, reader.widths, ViewSpec.simclr(size), 25, drop_last=False)
    options = {"augment": False} if engine in ("native", "resident") else {}
    made = ENGINES[engine](reader, sampler, num_threads=cores(), **options)
    try:
        return [np.asarray(pixels) for _, pixels in made.run(sampler.plans(0))]
    finally:
        made.close()


def compare(reader: BetonReader, engine: str, size: int, expected: list[np.ndarray]) -> dict[str, Any]:
    """Differences in gray levels: the largest inside and in the outermost ring of pixels, and the mean of all."""
    try:
        found = crops(reader, engine, size)
    except EngineUnavailable as error:
        return {"name": engine, "error": str(error)}
    inside = ring = 0
    total = count = 0
    for ours, theirs in zip(found, expected, strict=True):
        off = np.abs(ours.astype(np.int16) - theirs)
        total, count = total + int(off.sum()), count + off.size
        inside = max(inside, int(off[:, :, 1:-1, 1:-1].max()))
        off[:, :, 1:-1, 1:-1] = 0
        ring = max(ring, int(off.max()))
    return {"name": engine, "error": "", "inside": inside, "ring": ring, "mean": total / count}


def agreement_table(report: dict[str, Any]) -> str:
    """Markdown: a row per engine."""
    lines = [
        "| engine, on the CPU | largest difference, gray levels | in the outermost row and column | mean |",
        "|---|---:|---:|---:|",
    ]
    for row in report["results"]:
        cells = ["not measured"] * 3
        if not row["error"]:
            cells = [str(row["inside"]), str(row["ring"]), f"{row['mean']:.4f}"]
        lines.append(f"| `{row['name']}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main(sys.argv[1:])
