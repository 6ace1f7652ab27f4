"""Options that the in-process benchmarks share."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from benchmarks.core.report import check_at_least_1, check_out


@dataclass(frozen=True, kw_only=True)
class CommonOptions:
    """Options of every in-process benchmark."""

    rounds: int = 5
    """Turns of each variant."""
    device: str = "auto"
    """cpu, cuda, cuda:N, or auto: a GPU where there is one."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE.json")] = None
    """Where to write the result."""

    def __post_init__(self) -> None:
        check_out(self.out)
        check_at_least_1(self, "rounds")


@dataclass(frozen=True, kw_only=True)
class TimedOptions(CommonOptions):
    """Options of a benchmark whose turns have a duration."""

    turn_s: float = 0.1
    """Approximate duration of a turn, seconds."""
