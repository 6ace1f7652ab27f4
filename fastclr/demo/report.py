"""Renders the demo's report: one self-contained HTML page, light and dark."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from fastclr.demo.charts import bars_by_class, training_curve
from fastclr.demo.neighbours import Neighbours

THUMBNAIL = 192
"""Longer side of a picture in the gallery, pixels: twice the displayed size, for high-resolution screens."""


@dataclass(frozen=True)
class Scores:
    """Accuracies of an encoder on the test pictures; top-1, 0 to 1."""

    knn: float
    """Weighted kNN."""
    linear: float
    """Linear probe."""
    per_class: Sequence[float]
    """Weighted kNN, for each class."""


@dataclass(frozen=True)
class Stage:
    """A part of the demo, for the table of times."""

    name: str
    seconds: float
    note: str


@dataclass(frozen=True, eq=False)
class Report:
    """Content of the page."""

    images: str
    """The training images, e.g. "4,000 drawn pictures of 10 shapes"."""
    training: str
    """The training, e.g. "30 epochs of SimCLR on 2 CPU threads"."""
    fitted: str
    """How the number of epochs was chosen."""
    train_seconds: float
    metrics: Sequence[dict[str, float]]
    """Records of metrics.jsonl: step, loss, accuracy, …"""
    images_per_s: float
    data_wait: float
    """Fraction of the training time spent waiting for data."""
    class_names: Sequence[str]
    scores: tuple[Scores, Scores] | None
    """Before and after; None without labels."""
    gallery: Sequence[Neighbours]
    sheet: Image.Image
    """The contact sheet of views."""
    stages: Sequence[Stage]
    commands: Sequence[tuple[str, str]]
    """The commands that repeat the demo, as comment and command line."""
    environment: Sequence[tuple[str, str]]
    recipe: str
    """The resolved recipe, TOML."""


def render(report: Report) -> str:
    """Return the page."""
    pages = Environment(
        loader=PackageLoader("fastclr.demo", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages.filters.update(jpeg=_jpeg, thumbnail=_thumbnail, duration=_duration)
    return pages.get_template("report.html.j2").render(report=report, charts=_charts(report))


def _charts(report: Report) -> dict[str, Markup]:
    """Return the charts by name; a curve with too few points for a line is left out."""
    charts: dict[str, Any] = {}
    for key, percent in (("loss", False), ("accuracy", True)):
        points = [(record["step"], record[key]) for record in report.metrics if key in record]
        if len(points) > 1:
            charts[key] = training_curve(points, key, percent)
    if report.scores:
        before, after = report.scores
        charts["classes"] = bars_by_class(report.class_names, before.per_class, after.per_class)
    return {name: Markup(chart) for name, chart in charts.items()}


def _duration(seconds: float) -> str:
    """Return a duration for readers: "1 min 23 s"."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"


def _thumbnail(picture: Image.Image) -> Image.Image:
    small = picture.copy()
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    return small


def _jpeg(picture: Image.Image) -> str:
    """Return a picture as a data URL."""
    content = BytesIO()
    picture.convert("RGB").save(content, "JPEG", quality=88)
    return f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}"
