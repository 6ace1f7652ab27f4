"""Charts as inline SVG that takes its colors from the page: ink is `currentColor`, the rest are CSS variables."""

import io
import re
from collections.abc import Sequence
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

INK, ACCENT, BEFORE, RULE = "#010101", "#020202", "#030303", "#040404"
"""Placeholder colors, which the page replaces by its CSS variables: matplotlib accepts only colors."""
PAGE_COLORS = {INK: "currentColor", ACCENT: "var(--accent)", BEFORE: "var(--before)", RULE: "var(--rule)"}
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": RULE,
    "axes.labelcolor": INK,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "grid.color": RULE,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
MAX_CLASSES = 20
"""Maximum number of classes in the chart by class."""


def training_curve(points: Sequence[tuple[float, float]], name: str, percent: bool = False) -> str:
    """Return a line chart over the steps.

    Args:
        points: step and value; sorted by step.
        name: name of the value, for the axis.
        percent: the value is a fraction, shown in percent from 0.
    """
    with rc_context(STYLE):
        figure = Figure(figsize=(5.2, 2.5), layout="constrained")
        axes = figure.subplots()
        axes.plot(*zip(*points, strict=True), color=ACCENT, linewidth=1.6, marker="o", markevery=[-1])
        axes.set(xlabel="step", ylabel=name)
        if percent:
            axes.set_ylim(bottom=0)
            axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.grid(axis="y")
        return _svg(figure)


def bars_by_class(names: Sequence[str], before: Sequence[float], after: Sequence[float]) -> str:
    """Return horizontal bars of accuracies (0 to 1), two for each class: before and after training."""
    names, before, after = names[:MAX_CLASSES], before[:MAX_CLASSES], after[:MAX_CLASSES]
    with rc_context(STYLE):
        figure = Figure(figsize=(5.2, max(1.0 + 0.42 * len(names), 2.5)), layout="constrained")
        axes: Axes = figure.subplots()
        rows = range(len(names))
        bars = axes.barh(rows, after, 0.5, color=ACCENT, label="trained")
        axes.barh([row + 0.375 for row in rows], before, 0.25, color=BEFORE, label="random weights")
        axes.bar_label(bars, [f"{value:.0%}" for value in after], padding=3)
        # "$" would begin a formula
        axes.set_yticks(rows, [name[:16].replace("$", r"\$") for name in names])
        axes.set_xlim(0, 1.08)
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))
        axes.invert_yaxis()
        axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.06), ncols=2)
        return _svg(figure)


def _svg(figure: Figure) -> str:
    """Return the figure as an SVG element for a page: without prolog and metadata, in the page's colors."""
    out = io.StringIO()
    figure.savefig(
        out, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type"))
    )
    text = out.getvalue()
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text[text.index("<svg") :])
    for stand_in, color in PAGE_COLORS.items():
        text = text.replace(stand_in, color)
    return text
