"""`fastclr doctor`: what can run here, how fast, and what would make the rest run."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from fastclr.arguments import parse
from pipelines.system.terminal import printable

if TYPE_CHECKING:
    from fastclr.doctor import Check


@dataclass(frozen=True)
class Arguments:
    """Say what is installed, which engines and kernels can run here, and how fast the disk and the decoder are."""

    file: Annotated[Path | None, tyro.conf.arg(metavar="FILE.beton")] = None
    """Measure the decoder and the disk on this file or set; None: on a drawn image and a temporary file."""
    json: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print one JSON list instead of tables."""


def main(argv: list[str]) -> None:
    """Run the command."""
    arguments = parse(Arguments, argv, "fastclr doctor")
    from fastclr.doctor import examine

    checks = examine(arguments.file)
    if arguments.json:
        print(json.dumps([asdict(check) for check in checks], indent=1))
    else:
        _print_tables(checks)


def _print_tables(checks: "Iterable[Check]") -> None:
    from itertools import groupby

    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console, engines, gpus = Console(), [], 0
    for group, rows in groupby(checks, key=lambda check: check.group):
        table = Table(title=group, title_justify="left", title_style="bold", box=None, show_header=False)
        table.add_column(no_wrap=True)
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for check in rows:
            engines += [check.name] if group == "engines" and check.ok else []
            gpus += check.name.startswith("GPU ") and check.ok
            mark = "[green]✓[/]" if check.ok else "[yellow]–[/]"
            table.add_row(mark, escape(check.name), escape(printable(check.detail)))
            if check.fix:
                table.add_row("", "", f"[cyan]→ {escape(printable(check.fix))}[/]")
        console.print(table)
    where = f"{gpus} GPU{'' if gpus == 1 else 's'}" if gpus else "the CPU"
    console.print(f"This machine can train on {where}, with the engines {', '.join(engines)}.")
