"""The demo's report: one HTML page with everything in it, light and dark, that needs nothing from elsewhere."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from io import BytesIO

from PIL import Image

from fastclr.demo.charts import line_chart, pair_bars, time_bar

THUMBNAIL = 96
"""Pixels of a picture in the gallery."""
MOST_CLASSES = 20
"""Classes in the chart by class."""


@dataclass(frozen=True)
class Scores:
    """How a set of features does on the test pictures."""

    knn: float
    """Top-1 of weighted kNN, 0 to 1."""
    linear: float
    """Top-1 of a linear probe, 0 to 1."""
    per_class: tuple[float, ...]
    """kNN's share of right answers in each class, 0 to 1."""


@dataclass(frozen=True)
class Stage:
    """A part of the demo, for the table of times."""

    name: str
    seconds: float
    note: str


@dataclass(frozen=True, eq=False)
class Neighbours:
    """A test picture and the training pictures nearest to it, with their class names ("" where unknown)."""

    query: tuple[Image.Image, str]
    before: Sequence[tuple[Image.Image, str]]
    after: Sequence[tuple[Image.Image, str]]


@dataclass(frozen=True, eq=False)
class Report:
    """All that the page shows."""

    images: str
    """What was trained on, e.g. "4,000 drawn pictures of 10 shapes"."""
    training: str
    """How, e.g. "30 epochs of SimCLR on 2 CPU threads"."""
    train_seconds: float
    metrics: Sequence[dict[str, float]]
    """Records of metrics.jsonl: step, loss, accuracy, …"""
    images_per_s: float
    data_wait: float
    """Share of the training time spent waiting for data."""
    class_names: Sequence[str]
    chance: float
    """Accuracy of guessing, 0 to 1."""
    scores: tuple[Scores, Scores] | None
    """Before and after; None without labels."""
    gallery: Sequence[Neighbours]
    sheet: Image.Image
    """The contact sheet of views."""
    stages: Sequence[Stage]
    commands: Sequence[tuple[str, str]]
    """What was run, as comment and command line."""
    environment: Sequence[tuple[str, str]]
    recipe: str
    """The resolved recipe, TOML."""


def render(report: Report) -> str:
    """The page."""
    style = resources.files("fastclr.demo").joinpath("report.css").read_text("utf-8")
    sections = [
        _header(report),
        _tiles(report),
        _curves(report),
        _gallery(report),
        _views(report),
        _times(report),
        _own_images(report),
        _environment(report),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<title>fastclr demo</title>\n'
        f"<style>\n{style}</style>\n</head>\n<body>\n<main>\n{''.join(sections)}</main>\n</body>\n</html>\n"
    )


def _header(report: Report) -> str:
    if report.scores:
        before, after = (f"{100 * scores.knn:.0f}" for scores in report.scores)
        title = f'From {before} % to <span class="accent">{after} %</span> without a single label'
        if report.scores[1].knn <= report.scores[0].knn:
            title = f"{before} % before training, {after} % after: more images, or more minutes"
    else:
        title = "An encoder trained on your images"
    minutes, seconds = divmod(round(report.train_seconds), 60)
    took = f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"
    return (
        f'<header>\n<p class="eyebrow">fastclr demo</p>\n<h1>{title}</h1>\n'
        f'<p class="lead">{escape(report.images)}; {escape(report.training)}, in {took}.</p>\n</header>\n'
    )


def _tiles(report: Report) -> str:
    tiles = []
    if report.scores:
        before, after = report.scores
        chance = f"chance is {100 * report.chance:.0f} %"
        for name, low, high in (
            ("Weighted kNN", before.knn, after.knn),
            ("Linear probe", before.linear, after.linear),
        ):
            value = f'<span class="from">{100 * low:.1f} →</span> {100 * high:.1f} %'
            tiles.append((name, value, f"random weights → trained; {chance}"))
    else:
        tiles.append(
            ("kNN accuracy", "not measured", "the images have no labels: put them into one folder per class")
        )
    tiles.append(
        ("Training speed", f"{report.images_per_s:,.0f}", "source images per second, two views of each")
    )
    tiles.append(("Waiting for data", f"{100 * report.data_wait:.1f} %", "of the training time"))
    cells = "".join(
        f'<div class="tile"><p class="label">{escape(name)}</p><p class="value">{value}</p>'
        f'<p class="quiet">{escape(note)}</p></div>\n'
        for name, value, note in tiles
    )
    return f'<section class="tiles">\n{cells}</section>\n'


def _curves(report: Report) -> str:
    def curve(key: str) -> list[tuple[float, float]]:
        return [(record["step"], record[key]) for record in report.metrics if key in record]

    figures = [
        _figure("Contrastive loss", line_chart(curve("loss"), "step", "loss"), "NT-Xent, mean over a batch."),
        _figure(
            "Contrastive accuracy",
            line_chart(curve("accuracy"), "step", "accuracy", percent=True),
            "How often the other view of an image is found among all views of the batch.",
        ),
    ]
    if report.scores:
        before, after = report.scores
        rows = list(zip(report.class_names, before.per_class, after.per_class, strict=True))[:MOST_CLASSES]
        legend = '<span class="key before"></span>random weights <span class="key after"></span>trained'
        # second, so that it stands beside the two curves, which stand one above the other
        figures.insert(1, _figure("kNN accuracy by class", pair_bars(rows), legend, "tall"))
    return f'<section>\n<h2>What happened</h2>\n<div class="panels">\n{"".join(figures)}</div>\n</section>\n'


def _figure(title: str, chart: str, caption: str, name: str = "") -> str:
    return (
        f'<figure class="{name}">\n<h3>{escape(title)}</h3>\n{chart}\n'
        f"<figcaption>{caption}</figcaption>\n</figure>\n"
    )


def _gallery(report: Report) -> str:
    if not report.gallery:
        return ""
    rows = []
    for entry in report.gallery:
        wanted = entry.query[1]
        lists = "".join(
            f'<div class="strip"><span class="quiet">{name}</span>'
            f"{''.join(_thumbnail(picture, label, wanted) for picture, label in found)}</div>\n"
            for name, found in (("before", entry.before), ("after", entry.after))
        )
        rows.append(
            f'<div class="query">{_thumbnail(*entry.query, "")}<div class="strips">{lists}</div></div>\n'
        )
    hint = ", framed where the class is right" if report.scores else ""
    return (
        "<section>\n<h2>Nearest neighbours</h2>\n"
        f'<p class="quiet">Test pictures on the left; beside each, the training pictures nearest to it{hint}: '
        "by the features of random weights, and by those of the trained encoder.</p>\n"
        f'<div class="gallery">\n{"".join(rows)}</div>\n</section>\n'
    )


def _thumbnail(picture: Image.Image, label: str, wanted: str) -> str:
    small = picture.copy()
    small.thumbnail((2 * THUMBNAIL, 2 * THUMBNAIL))
    right = ' class="right"' if label and label == wanted else ""
    return f'<img{right} src="{_jpeg(small)}" alt="{escape(label)}" title="{escape(label)}">'


def _views(report: Report) -> str:
    return (
        "<section>\n<h2>What the network sees</h2>\n"
        '<p class="quiet">Every image is decoded once, cropped twice, and each crop augmented by numbers that are '
        "drawn before a pixel is touched. The network learns to tell which two views belong together.</p>\n"
        f'<img class="sheet" src="{_jpeg(report.sheet)}" alt="contact sheet of views">\n</section>\n'
    )


def _times(report: Report) -> str:
    rows = "".join(
        f'<tr><td><span class="key stage{number % 6}"></span>{escape(stage.name)}</td>'
        f'<td class="number">{stage.seconds:.1f} s</td><td class="quiet">{escape(stage.note)}</td></tr>\n'
        for number, stage in enumerate(report.stages)
    )
    bar = time_bar([(stage.name, stage.seconds) for stage in report.stages])
    return f"<section>\n<h2>Where the time went</h2>\n{bar}\n<table>\n{rows}</table>\n</section>\n"


def _own_images(report: Report) -> str:
    lines = "".join(
        f'<span class="comment"># {escape(comment)}</span>\n{escape(command)}\n'
        for comment, command in report.commands
    )
    return (
        "<section>\n<h2>The same by hand, and on your own images</h2>\n"
        f"<pre><code>{lines}</code></pre>\n</section>\n"
    )


def _environment(report: Report) -> str:
    rows = "".join(
        f'<tr><td>{escape(name)}</td><td class="quiet">{escape(value)}</td></tr>\n'
        for name, value in report.environment
    )
    return (
        f"<section>\n<h2>Environment</h2>\n<table>\n{rows}</table>\n"
        "<details>\n<summary>The recipe, resolved</summary>\n"
        f"<pre><code>{escape(report.recipe)}</code></pre>\n</details>\n</section>\n"
    )


def _jpeg(picture: Image.Image) -> str:
    """A picture as a data URL."""
    content = BytesIO()
    picture.convert("RGB").save(content, "JPEG", quality=88)
    return f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}"
