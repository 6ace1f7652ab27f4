"""The charts are well-formed SVG in the page's colors, and their marks are where the numbers are."""

import re
from xml.etree import ElementTree

import pytest

from fastclr.demo.charts import PAGE_COLORS, bars_by_class, training_curve


def parse(chart: str) -> ElementTree.Element:
    return ElementTree.fromstring(chart.replace("xlink:href", "href"))


def points_of(path: str) -> list[tuple[float, float]]:
    numbers = [float(number) for number in re.findall(r"-?[\d.]+", path)]
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def test_the_line_goes_through_the_points():
    chart = parse(training_curve([(10, 0.0), (20, 0.5), (40, 1.0)], "accuracy", percent=True))
    (line,) = [
        path
        for path in chart.iter("path")
        if "--accent" in path.get("style", "") and "fill: none" in path.get("style", "")
    ]
    (x0, y0), (x1, y1), (x2, y2) = points_of(line.get("d", ""))
    assert (x1 - x0) / (x2 - x0) == pytest.approx(1 / 3, abs=0.01)
    assert (y0 - y1) / (y0 - y2) == pytest.approx(1 / 2, abs=0.01)
    texts = {text.text for text in chart.iter("text")}
    assert {"step", "accuracy", "0%", "100%"} <= texts


@pytest.mark.parametrize("points", [[(1, 5.0), (2, 5.0)], [(1, 0.0), (2, 0.0)], [(0, -1.0), (7, 1e6)]])
def test_flat_and_wide_lines_are_drawn(points):
    assert parse(training_curve(points, "loss")).tag == "svg"


def test_bars_are_as_long_as_the_shares():
    names = ["a<b & c", "$x^", "a very long name indeed"]
    chart = parse(bars_by_class(names, [0.25, 0.1, 0.0], [0.5, 0.8, 1.0]))

    def widths(color: str) -> list[float]:
        bars = [path for path in chart.iter("path") if f"fill: {color}" in path.get("style", "")]
        found = [points_of(bar.get("d", "")) for bar in bars]
        return [max(x for x, _ in points) - min(x for x, _ in points) for points in found]

    after, before = widths("var(--accent)")[:3], widths("var(--before)")[:3]
    assert after[0] / after[2] == pytest.approx(0.5, abs=0.01) and after[1] / after[2] == pytest.approx(
        0.8, abs=0.01
    )
    assert before[0] / after[2] == pytest.approx(0.25, abs=0.01) and before[2] == 0
    texts = [text.text for text in chart.iter("text")]
    assert {"a<b & c", "$x^", "a very long name", "50%", "trained", "random weights"} <= set(texts)


def test_charts_take_their_colors_from_the_page():
    chart = training_curve([(1, 2.0), (2, 1.0)], "loss") + bars_by_class(["a"], [0.1], [0.2])
    assert not any(stand_in in chart for stand_in in PAGE_COLORS)
    assert "currentColor" in chart and "var(--accent)" in chart and "var(--before)" in chart
    assert "http" not in chart and "<?xml" not in chart
