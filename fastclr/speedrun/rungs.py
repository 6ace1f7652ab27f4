"""Rungs: what a speedrun has to reach, on which machine, and how it is tested; read from rungs.toml."""

import difflib
import tomllib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from pipelines.system.terminal import one_line


@dataclass(frozen=True, kw_only=True)
class Rung:
    """One rung of the ladder: a target to be reached in the shortest time, or a budget to be used best."""

    id: str
    title: str
    """What is asked for, in a sentence."""
    metric: Literal["knn", "linear"]
    """Accuracy that decides: weighted kNN (k = 200, T = 0.1), or a linear probe of 90 epochs."""
    seeds: int
    """Minimum number n of seeds of a record: 0 … n − 1."""
    target: float | None = None
    """Accuracy that the mean has to reach, 0 to 1; the shortest time is the record."""
    budget_cpu_s: float | None = None
    """CPU seconds that no seed may exceed; the highest mean accuracy is the record."""
    epochs: int | None = None
    """Epochs of every seed; the highest mean accuracy is the record."""
    sigma: float | Literal["baseline"] = "baseline"
    """Standard deviation σ of a seed's accuracy; baseline: that of the first record of the same class."""
    gpus: int = 0
    """GPUs of the machine; 0: a CPU, whose clock is the CPU time of the process."""
    classes: tuple[str, ...] = ()
    """Classes of machine that have a table of their own; empty: each GPU's name is a class."""
    data: str
    """Name of the data set."""
    train_samples: int
    test_samples: int
    num_classes: int
    bank_samples: int | None = None
    """Training images with a label, which the evaluation learns from; None: all."""
    encoder: str = "any"
    """Encoder of the division simclr: resnet-DEPTH, or any."""
    max_parameters: int = 25_000_000
    """Maximum parameters of the encoder in the division simclr; the division open has 25 million everywhere."""
    recipe: str
    """Recipe to begin with."""
    reference: str
    """What is known from elsewhere, not run here."""
    source: str
    """Where that is from."""
    goal: str = ""
    conversion_cpu_s: float | None = None
    """CPU seconds of converting the training set, measured once; `--source` measures them."""

    def __post_init__(self) -> None:
        asked = [name for name in ("target", "budget_cpu_s", "epochs") if getattr(self, name) is not None]
        if len(asked) != 1:
            raise ValueError(
                f"rung {self.id} has {' and '.join(asked) or 'no aim'}; it must have one of "
                "target, budget_cpu_s, epochs"
            )

    @property
    def aims_at_time(self) -> bool:
        """Whether the shortest time is the record, and not the highest accuracy."""
        return self.target is not None

    @property
    def machine(self) -> str:
        """The machine in words."""
        return "one thread of a CPU" if not self.gpus else f"{self.gpus} GPU{'' if self.gpus == 1 else 's'}"


def load_rungs(path: Path) -> dict[str, Rung]:
    """Return the rungs of a file by their ids, in its order.

    Raises:
        ValueError: the file is no TOML, or a rung lacks a field or has an unknown one.
        OSError: the file can't be read.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))["rung"]
    except (tomllib.TOMLDecodeError, KeyError) as error:
        raise ValueError(f"{path} is no list of rungs, [[rung]] in TOML: {one_line(error)}") from None
    known = {field.name for field in fields(Rung)}
    rungs = {}
    for table in tables:
        unknown = table.keys() - known
        if unknown:
            raise ValueError(f"{path}: rung {table.get('id')!r} has the unknown field {min(unknown)!r}")
        table["classes"] = tuple(table.get("classes", ()))
        try:
            rung = Rung(**table)
        except TypeError as error:
            raise ValueError(f"{path}: rung {table.get('id')!r}: {one_line(error)}") from None
        rungs[rung.id] = rung
    return rungs


def find_rung(rungs: dict[str, Rung], name: str) -> Rung:
    """Return a rung by its id.  ValueError: there is none; the message has the nearest one."""
    if name in rungs:
        return rungs[name]
    near = difflib.get_close_matches(name, rungs, n=1)
    hint = f"; did you mean {near[0]}?" if near else f"; there are {', '.join(rungs)}"
    raise ValueError(f"no rung {name!r}{hint}")
