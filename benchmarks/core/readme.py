"""Writes the tables of README.md and docs/ from the results: `python -m benchmarks.core.readme`."""

import sys
from pathlib import Path

from benchmarks.core.report import RESULTS, load
from benchmarks.kernels.targets import targets_table
from benchmarks.loaders.agreement import agreement_table, unmeasured
from benchmarks.loaders.report import WORKLOADS, AgreementReport, LoaderReport
from fastclr.markers import fill


def loader_table(reports: list[LoaderReport]) -> str:
    """Return Markdown with a row per loader and two columns per file: medians, and ratios to the decode limit."""
    heads = [_file_label(report) for report in reports]
    lines = [
        "| source images/s (share of the decode limit) | " + " | ".join(heads) + " |",
        "|---|" + "---:|" * len(heads),
        "| **decode limit** | "
        + " | ".join(f"{report.decode_limit.median:,.0f}" for report in reports)
        + " |",
    ]
    for what, title in WORKLOADS.items():
        for row in reports[0].results.get(what, []):
            cells = [_cell(report, what, row.name) for report in reports]
            lacks = f" (lacks {row.lacks})" if row.lacks else ""
            lines.append(f"| {title}: {row.name}{lacks} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def loader_caption(report: LoaderReport) -> str:
    """Return Markdown that says with which machine, file and command the table was measured."""
    machine, settings, file = report.machine, report.settings, report.file
    return (
        f"Median of {report.decode_limit.rounds} interleaved rounds on {settings.threads} threads of an "
        f"{machine.processor}, {file.images} images, views of {settings.size} px; one image is two "
        f"views.  `recompress` is FFCV's convention (longer side ≤ {file.convert.max_side}, quality "
        f"{file.convert.quality}) with restart markers; `keep` stores images up to that size byte for byte, and "
        f"re-encodes larger ones; `lossless` adds restart markers to them.  The **decode limit** is the rate at which "
        f"the same threads only decode each image once, without markers.  "
        f"`fastclr bench loader`, commit {machine.commit}, "
        f"torch {machine.versions['torch']}, torchvision {machine.versions['torchvision']}."
    )


def _file_label(report: LoaderReport) -> str:
    convert = report.file.convert
    return f"`--jpeg {convert.jpeg}`" if convert.jpeg else report.file.name


def _cell(report: LoaderReport, what: str, name: str) -> str:
    for row in report.results.get(what, []):
        if row.name == name:
            if row.error:
                return "not measured"
            return f"{row.median:,.0f} ({row.median / report.decode_limit.median:.0%})"
    return "not measured"


def readme_tables() -> dict[str, str]:
    """Return the tables of README.md, by marker."""
    names = ("recompress", "lossless", "keep")
    reports = [load(RESULTS / f"loader-{name}.json", LoaderReport) for name in names]
    return {
        "loader-table": loader_table(reports),
        "loader-caption": loader_caption(reports[0]),
        "gpu-table": targets_table(RESULTS / "gpu"),
    }


def engines_tables() -> dict[str, str]:
    """Return the tables of docs/engines.md, by marker."""
    on_gpu = RESULTS / "gpu" / "agreement.json"
    reports = [
        load(RESULTS / "agreement.json", AgreementReport),
        load(on_gpu, AgreementReport) if on_gpu.exists() else unmeasured("cuda"),
    ]
    return {"agreement-table": agreement_table(reports)}


def main(check: bool) -> None:
    """Rewrite the tables of the pages, or with `check` only report whether they are outdated."""
    for name, tables in {"README.md": readme_tables(), "docs/engines.md": engines_tables()}.items():
        page = Path(__file__).parents[2] / name
        old = page.read_text(encoding="utf-8")
        new = fill(old, tables)
        if not check:
            page.write_text(new, encoding="utf-8")
        elif old != new:
            sys.exit(
                f"{name}'s tables are not those of benchmarks/results; run python -m benchmarks.core.readme"
            )


if __name__ == "__main__":
    main(check="--check" in sys.argv[1:])
