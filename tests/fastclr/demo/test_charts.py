"""The charts are valid SVG, and their marks are where the numbers are."""

import re
from xml.etree import ElementTree

import pytest

from fastclr.demo import charts
from fastclr.demo.charts import line_chart, pair_bars, ticks, time_bar


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (3.7, 6.4, [4, 5, 6]),
        (0, 391, [0, 100, 200, 300]),
        (5.2, 5.21, [5.2, 5.202, 5.204, 5.206, 5.208, 5.21]),
        (3, 3, [3]),
    ],
)
def test_ticks_are_round_numbers_inside(low, high, expected):
    assert ticks(low, high) == pytest.approx(expected)


def test_the_line_goes_through_the_points():
    chart = ElementTree.fromstring(
        line_chart([(10, 0.0), (20, 0.5), (40, 1.0)], "step", "accuracy", percent=True)
    )
    line = chart.find("polyline[@class='line']")
    points = [tuple(map(float, pair.split(","))) for pair in line.get("points").split()]
    assert [x for x, _ in points] == sorted(x for x, _ in points)
    (x0, y0), (x1, y1), (x2, y2) = points
    assert (x1 - x0) / (x2 - x0) == pytest.approx(1 / 3, abs=0.01)
    assert (y0 - y1) / (y0 - y2) == pytest.approx(1 / 2, abs=0.01)
    assert y0 == charts.HEIGHT - charts.BOTTOM  # 0 % lies on the axis
    texts = [text.text for text in chart.iter("text")]
    assert {"0 %", "50 %", "100 %", "step"} & set(texts) >= {"0 %", "step"}


@pytest.mark.parametrize("points", [[(1, 5.0), (2, 5.0)], [(1, 0.0), (2, 0.0)], [(0, -1.0), (7, 1e6)]])
def test_flat_and_wide_lines_stay_inside(points):
    chart = ElementTree.fromstring(line_chart(points, "step", "loss"))
    for number in re.findall(r"[\d.]+,([\d.-]+)", chart.find("polyline").get("points")):
        assert 0 <= float(number) <= charts.HEIGHT


def test_too_few_points_say_so():
    assert "Too few" in line_chart([(1, 2.0)], "step", "loss")


def test_bars_are_as_long_as_the_shares():
    chart = ElementTree.fromstring(
        pair_bars([("a<b & c", 0.25, 0.5), ("of a very long name indeed", 0.0, 1.0)])
    )
    before, after = (
        [float(bar.get("width")) for bar in chart.iterfind(f"rect[@class='{name}']")]
        for name in ("before", "after")
    )
    assert after[1] == pytest.approx(2 * after[0], abs=0.1)
    assert before == pytest.approx([after[0] / 2, 0], abs=0.1)
    assert [text.text for text in chart.iterfind("text[@class='name']")] == ["a<b & c", "of a very long n"]


def test_the_time_bar_shares_its_width():
    bar = ElementTree.fromstring(time_bar([("draw", 1.0), ("train", 3.0)]))
    starts = [float(part.get("x")) for part in bar.iter("rect")]
    assert starts == [0, 250]
    assert [title.text for title in bar.iter("title")] == ["draw: 1.0 s", "train: 3.0 s"]
