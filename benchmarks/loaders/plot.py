"""Plots, drawn from results and nothing else."""

from pathlib import Path

from benchmarks.loaders.report import WORKLOADS, LoaderReport, ScalingReport

OURS, THEIRS, LIMIT = "#1f6feb", "#9aa4b2", "#d1242f"


def plot_loader(report: LoaderReport, path: Path) -> None:
    """Bars of images/s with their spread over the rounds; the decode limit as a line."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    groups = {what: [row for row in rows if row.rounds] for what, rows in report.results.items()}
    counts = [max(len(rows), 1) for rows in groups.values()]
    figure, axes = plt.subplots(
        len(groups),
        1,
        figsize=(8, 0.9 + 0.42 * sum(counts)),
        sharex=True,
        squeeze=False,
        height_ratios=counts,
    )
    limit = report.decode_limit.median
    for axis, (what, rows) in zip(axes[:, 0], groups.items(), strict=True):
        medians = [row.median for row in rows]
        spread = [[row.median - row.low for row in rows], [row.high - row.median for row in rows]]
        colors = [OURS if row.name.startswith("fastclr") else THEIRS for row in rows]
        axis.barh([row.name for row in rows], medians, xerr=spread, color=colors, ecolor="#57606a", capsize=2)
        axis.axvline(limit, color=LIMIT, linewidth=1.5)
        for place, value in enumerate(medians):
            axis.annotate(f"{value:,.0f}", (value, place), (6, 4), textcoords="offset points", fontsize=8)
        axis.invert_yaxis()
        axis.set_title(WORKLOADS[what], fontsize=10, loc="left")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0, 0].annotate("decode limit", (limit, 1), (3, 3), xycoords=("data", "axes fraction"),
                        textcoords="offset points", fontsize=8, color=LIMIT, annotation_clip=False)  # fmt: skip
    settings, machine = report.settings, report.machine
    axes[-1, 0].set_xlabel(
        f"source images per second, {settings.size} px, {settings.threads} threads, {machine.processor}",
        fontsize=8,
    )
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)


def plot_scaling(report: ScalingReport, path: Path) -> None:
    """Lines of images/s over the number of threads, with the spread over the rounds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(6, 4))
    for (name, rows), color in zip(report.rows.items(), (LIMIT, OURS, THEIRS), strict=True):
        found = [row for row in rows if row.rounds]
        medians = [row.median for row in found]
        spread = [
            [row.median - row.low for row in found],
            [row.high - row.median for row in found],
        ]
        axis.errorbar(
            [row.threads for row in found],
            medians,
            yerr=spread,
            color=color,
            marker="o",
            capsize=2,
            label=name,
        )
    axis.set_xticks([row.threads for row in next(iter(report.rows.values()))])
    axis.set_ylim(bottom=0)
    settings, machine = report.settings, report.machine
    axis.set_xlabel(f"threads ({settings.size} px, {machine.processor})", fontsize=8)
    axis.set_ylabel("source images per second (two views each)", fontsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)
