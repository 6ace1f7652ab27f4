"""Results as files."""

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "results"


def check_out(out: Path | None) -> None:
    """Raise a ValueError, before anything is measured, if `out` does not name a result."""
    if out is not None and out.suffix != ".json":
        raise ValueError(f"--out must end in .json, got {out}")


def save(path: Path, report: dict[str, Any]) -> None:
    """Write a result as JSON; its folder is made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def load(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))
