"""The report is one well-formed page with everything in it."""

from html.parser import HTMLParser

import pytest
from PIL import Image

from fastclr.demo.neighbours import Neighbours
from fastclr.demo.report import Report, Scores, Stage, render

VOID = {"meta", "img"}


class Page(HTMLParser):
    """Collects text and addresses, and checks that tags close in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.addresses: list[str] = []
        self.correct: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.addresses += [given[name] for name in ("src", "href", "srcset", "data") if name in given]
        if tag == "img" and given.get("class") == "correct":
            self.correct.append(given["alt"])
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text.append(data)


def report(**changes) -> Report:
    red, blue = Image.new("RGB", (40, 30), "red"), Image.new("RGB", (300, 500), "blue")
    settings = {
        "images": "40 images of <cats & dogs>",
        "training": "3 epochs of SimCLR on 2 CPU threads",
        "fitted": "3 of 9 epochs fit.",
        "train_seconds": 83.4,
        "metrics": [{"step": step, "loss": 6 / step, "accuracy": 0.1 * step} for step in range(1, 6)],
        "images_per_s": 1234.5,
        "data_wait": 0.0123,
        "class_names": ["cat", "<dog>"],
        "scores": (Scores(0.31, 0.4, (0.2, 0.42)), Scores(0.778, 0.8, (0.7, 0.85))),
        "gallery": [Neighbours((red, "cat"), [(blue, "<dog>"), (red, "cat")], [(red, "cat"), (red, "cat")])],
        "sheet": blue,
        "stages": [Stage("convert", 1.25, "9 images/s"), Stage("train", 83.4, "fast")],
        "commands": [("train", "fastclr train demo --train a.beton")],
        "environment": [("processor", "Z80 <A>")],
        "recipe": "[views]\nsize = 64\n",
    }
    return Report(**{**settings, **changes})


def test_the_page_holds_everything_and_needs_nothing():
    html = render(report())
    page = Page(html)
    assert len(page.addresses) == 6  # five pictures of the gallery, and the contact sheet
    assert all(address.startswith("data:image/jpeg;base64,") for address in page.addresses)
    # a chart clips its lines by an element of its own
    without_own = html.replace("url(#", "")
    for outside in ("http://", "https://", "//cdn", "@import", "url(", "<script", "<link"):
        assert outside not in without_own
    text = " ".join(" ".join(page.text).split())
    for expected in (
        *("From 31 % to 78 %", "31.0 →", "77.8 %", "40.0 →", "80.0 %", "chance is 50 %"),
        *("in 1 min 23 s", "1,234", "1.2 %", "40 images of <cats & dogs>", "Z80 <A>", "size = 64"),
        *("fastclr train demo --train a.beton", "convert", "1.2 s", "85%", "3 of 9 epochs fit."),
    ):
        assert expected in text
    assert page.correct == ["cat", "cat", "cat"]  # of the four neighbours of the cat
    assert "prefers-color-scheme: dark" in html


def test_without_labels_no_accuracy_is_shown():
    page = Page(render(report(scores=None, gallery=[])))
    text = " ".join(page.text)
    assert "not measured" in text
    assert "no labels" in text
    assert "Linear probe" not in text
    assert "by class" not in text
    assert "Nearest neighbours" not in text


def test_a_neighbour_without_a_label_is_not_framed():
    red = Image.new("RGB", (4, 4), "red")
    page = Page(render(report(scores=None, gallery=[Neighbours((red, ""), [(red, "")], [(red, "")])])))
    assert page.correct == []
    assert len(page.addresses) == 4


@pytest.mark.parametrize(("seconds", "shown"), [(59.4, "in 59 s."), (60, "in 1 min 00 s."), (3, "in 3 s.")])
def test_times_are_readable(seconds, shown):
    assert shown in " ".join(Page(render(report(train_seconds=seconds))).text)
