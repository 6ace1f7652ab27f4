"""The tables of the ladder, one per rung, from the folders of the records: `fastclr speedrun table` and `list`."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastclr.config import Config
from fastclr.markers import fill
from fastclr.recipes import load_recipe
from fastclr.speedrun.check import RUNGS
from fastclr.speedrun.record import VERIFIED, Record, records_of
from fastclr.speedrun.rungs import Rung, load_rungs

NOT_RUN = "not run"
COMPARATORS = "comparators"


def rung_table(rung: Rung, records: Sequence[Record], root: Path) -> str:
    """Return Markdown: the rung, its records, a row per class that nobody has run, and what is known from elsewhere."""
    unit = "CPU min" if not rung.gpus else "min"
    head = ["record", "division", "machine", f"{rung.metric} ± sd (n)", "k = 10", unit, "wall min"]
    head += ["epochs", "px", "PFLOP", "p", "ratio to previous", "what changed"]
    lines = [f"**{rung.title[0].upper()}{rung.title[1:]}**, on {rung.machine}; n ≥ {rung.seeds}.", ""]
    lines += ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += [_row(record) for record in records]
    run = {record.summary["machine_class"] for record in records}
    missing = [name for name in rung.classes if name not in run] if rung.classes else [rung.machine]
    if rung.classes or not records:
        lines += [_not_run(rung, name, len(head)) for name in missing]
    lines += [_comparator(path, len(head)) for path in sorted((root / COMPARATORS).glob(f"{rung.id}-*.json"))]
    lines += ["", f"Known from elsewhere (cited, not run): {rung.reference} [{rung.source}]."]
    if rung.goal:
        lines[-1] += f" Goal: {rung.goal}."
    return "\n".join(lines)


def _row(record: Record) -> str:
    s = record.summary
    against, p = s["against"], s["statistics"]["p"]
    if against is None:
        ratio = ""
    else:
        ratio = f"{100 * against['difference']:+.2f} points, time × {against['clock_ratio']:.2f}"
    clock = s["clock_s"]
    cells = [
        f"[{record.folder.name}]({s['rung']}/{record.folder.name}/README.md){_verified(record)}",
        s["division"],
        f"{s['machine_class']}, {s['processor']}",
        _mean(s),
        f"{s['mean_knn10']:.2%}",
        f"{clock['mean'] / 60:.2f} ({clock['min'] / 60:.2f} to {clock['max'] / 60:.2f})",
        f"{s['wall_s'] / 60:.1f}",
        f"{s['epochs']}",
        f"{s['test_size']}",
        f"{s['pflop']:.3g}",
        "" if p is None else f"{p:.1e}",
        ratio,
        str(s["about"]).replace("|", "/"),
    ]
    return "| " + " | ".join(cells) + " |"


def _mean(summary: Any) -> str:
    spread = "" if summary["sd"] is None else f" ± {100 * summary['sd']:.2f}"
    return f"**{100 * summary['mean']:.2f}**{spread} % ({len(summary['seeds'])})"


def _verified(record: Record) -> str:
    """Return how often a record was run again, and how often it held."""
    found = [
        json.loads(path.read_text(encoding="utf-8")) for path in (record.folder / VERIFIED).glob("*.json")
    ]
    held = sum(bool(result["holds"]) for result in found)
    return f" (run again {len(found)} ×, held {held} ×)" if found else ""


def _not_run(rung: Rung, class_name: str, columns: int) -> str:
    cells = ["—", "", class_name, NOT_RUN, "", NOT_RUN, "", "", "", "", "", "", f"recipe `{rung.recipe}`"]
    if rung.gpus:
        from fastclr.speedrun.flop import run_pflop

        config = with_stem(load_recipe(rung.recipe))
        predicted = "" if rung.epochs is not None else " (predicted)"
        cells[7] = f"{config.train.epochs}{predicted}"
        cells[8] = f"{config.view_size}"
        cells[9] = f"{run_pflop(config, rung.train_samples):.3g}"
    assert len(cells) == columns
    return "| " + " | ".join(cells) + " |"


def with_stem(config: Config) -> Config:
    """Return a recipe whose stem is decided, by the size of its views, as a run decides it."""
    from dataclasses import replace

    from fastclr.train.build import CIFAR_SIZE

    if config.model.stem != "auto":
        return config
    stem: Any = "cifar" if config.view_size <= CIFAR_SIZE else "imagenet"
    return replace(config, model=replace(config.model, stem=stem))


def _comparator(path: Path, columns: int) -> str:
    """Return the row of a comparator, which is no record: another method, one seed."""
    r = json.loads(path.read_text(encoding="utf-8"))
    cells = ["comparator", "—", r["processor"], f"{r['knn']:.2%} (1)", f"{r['knn10']:.2%}"]
    cells += [f"{r['cpu_s'] / 60:.2f}", f"{r['wall_s'] / 60:.1f}", "", "", "", "", "", r["about"]]
    assert len(cells) == columns
    return "| " + " | ".join(cells) + " |"


def fill_page(text: str, root: Path) -> str:
    """Return README.md with its tables, each between `<!-- RUNG -->` and `<!-- /RUNG -->`.

    Raises:
        ValueError: a rung of rungs.toml has no pair of markers.
    """
    rungs = load_rungs(root / RUNGS).values()
    return fill(text, {rung.id: rung_table(rung, records_of(root, rung), root) for rung in rungs})


def listing(root: Path) -> str:
    """Return a line per rung: what is asked for, and the last record of each class."""
    rungs = load_rungs(root / RUNGS)
    width = max(map(len, rungs))
    lines = []
    for rung in rungs.values():
        lines.append(f"{rung.id:<{width}}  {rung.title} ({rung.machine})")
        records = records_of(root, rung)
        holders = {record.category: record for record in records}
        classes = rung.classes or (() if holders else ("",))
        for (class_name, division), record in holders.items():
            s = record.summary
            lines.append(
                f"{'':<{width}}    {class_name}, {division}: {100 * s['mean']:.2f} % in "
                f"{s['clock_s']['mean'] / 60:.2f} minutes, {record.folder.name}"
            )
        run = {class_name for class_name, _ in holders}
        lines += [
            f"{'':<{width}}    {name + ': ' if name else ''}{NOT_RUN}" for name in classes if name not in run
        ]
    return "\n".join(lines)
