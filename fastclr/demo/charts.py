"""Charts as inline SVG, in the colors of the page that they stand on."""

import math
from collections.abc import Sequence
from html import escape

WIDTH, HEIGHT = 500, 250
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 14, 38


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers, 1, 2 or 5 times a power of ten apart, from low to high.

    >>> ticks(0.3, 9.1)
    [2.0, 4.0, 6.0, 8.0]
    """
    if not high > low:
        return [low]
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def line_chart(
    points: Sequence[tuple[float, float]], x_title: str, y_title: str, percent: bool = False
) -> str:
    """One line over a grid.

    Args:
        points: x, y; sorted by x.
        percent: y is a share, shown in percent from 0.
    """
    if len(points) < 2:
        return '<p class="quiet">Too few steps for a curve.</p>'
    xs, ys = [x for x, _ in points], [y for _, y in points]
    low, high = (0.0, max(ys)) if percent else (min(ys), max(ys))
    margin = 0.06 * (high - low) or 0.01
    low, high = (0.0 if percent else low - margin), high + margin

    def place_x(x: float) -> float:
        return LEFT + (x - xs[0]) / (xs[-1] - xs[0]) * (WIDTH - LEFT - RIGHT)

    def place_y(y: float) -> float:
        return HEIGHT - BOTTOM - (y - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    parts = []
    y_ticks = ticks(low, high)
    digits = 0 if percent else max(0, -math.floor(math.log10(y_ticks[1] - y_ticks[0])))
    for y in y_ticks:
        text = f"{100 * y:.0f} %" if percent else f"{y:.{digits}f}"
        parts.append(
            f'<path class="grid" d="M{LEFT} {place_y(y):.1f}H{WIDTH - RIGHT}"/>'
            f'<text class="tick" x="{LEFT - 8}" y="{place_y(y) + 4:.1f}" text-anchor="end">{text}</text>'
        )
    for x in ticks(xs[0], xs[-1]):
        parts.append(
            f'<text class="tick" x="{place_x(x):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{x:,.0f}</text>'
        )
    line = " ".join(f"{place_x(x):.1f},{place_y(y):.1f}" for x, y in points)
    floor = HEIGHT - BOTTOM
    parts.append(f'<polygon class="area" points="{LEFT},{floor} {line} {WIDTH - RIGHT},{floor}"/>')
    parts.append(f'<polyline class="line" points="{line}"/>')
    parts.append(f'<circle class="dot" cx="{place_x(xs[-1]):.1f}" cy="{place_y(ys[-1]):.1f}" r="4"/>')
    parts.append(
        f'<text class="tick" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 4}" text-anchor="middle">'
    )
    parts.append(f"{escape(x_title)}</text>")
    return _svg(HEIGHT, f"{y_title} over {x_title}", "".join(parts))


def pair_bars(rows: Sequence[tuple[str, float, float]]) -> str:
    """A horizontal bar per row for the share before, and one for the share after.

    Args:
        rows: name, share before, share after; shares are 0 to 1.
    """
    left, right = 110, 58
    step = min(max(600 / len(rows), 27), 58)  # together as tall as two line charts, if it can be
    height, thick = step * len(rows) + 22, 0.4 * step
    scale = WIDTH - left - right
    parts = []
    for percent in (0, 25, 50, 75, 100):
        x = left + scale * percent / 100
        parts.append(
            f'<path class="grid" d="M{x} 0V{height - 20}"/>'
            f'<text class="tick" x="{x}" y="{height - 4}" text-anchor="middle">{percent} %</text>'
        )
    for number, (name, before, after) in enumerate(rows):
        y = number * step + 4
        parts.append(
            f'<text class="name" x="{left - 10}" y="{y + thick}" text-anchor="end">{escape(name[:16])}</text>'
            f'<rect class="after" x="{left}" y="{y}" width="{scale * after:.1f}" height="{thick}" rx="2"/>'
            f'<rect class="before" x="{left}" y="{y + thick + 1}" width="{scale * before:.1f}" '
            f'height="{thick / 2}" rx="2"/>'
            f'<text class="value" x="{WIDTH}" y="{y + thick}" text-anchor="end">{100 * after:.0f} %</text>'
        )
    return _svg(height, "accuracy by class, before and after", "".join(parts))


def time_bar(stages: Sequence[tuple[str, float]]) -> str:
    """Stages, with their seconds, as parts of one bar."""
    total = sum(seconds for _, seconds in stages) or 1.0
    width, x, parts = 1000, 0.0, []
    for number, (name, seconds) in enumerate(stages):
        share = seconds / total * width
        parts.append(
            f'<rect class="stage{number % 6}" x="{x:.1f}" y="0" width="{max(share - 2, 0.5):.1f}" height="26" rx="3">'
            f"<title>{escape(name)}: {seconds:.1f} s</title></rect>"
        )
        x += share
    return (
        f'<svg class="timebar" viewBox="0 0 {width} 26" preserveAspectRatio="none" role="img" '
        f'aria-label="seconds of each stage">{"".join(parts)}</svg>'
    )


def _svg(height: float, label: str, body: str) -> str:
    return f'<svg class="chart" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(label)}">{body}</svg>'
