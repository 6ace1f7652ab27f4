"""The pages of docs/: their links lead somewhere, and the site holds them all."""

import re
from pathlib import Path

import pytest
import yaml
from PIL import Image

from pipelines.convert import Encoding, convert, open_source

ROOT = Path(__file__).parents[1]
PAGES = [*sorted((ROOT / "docs").glob("*.md")), *sorted(ROOT.glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target.partition("#")[0]).exists(), target


def test_the_site_has_every_page():
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    listed = re.findall(r"'([\w-]+\.md)'", str(site["nav"]))
    assert sorted(listed) == sorted(page.name for page in (ROOT / "docs").glob("*.md"))


def test_links_out_of_docs_become_names(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs")
    from hooks import on_page_markdown

    text = "[its docstring](../pipelines/loader.py), [pipelines/loader.py](../pipelines/loader.py), [x](engines.md)"
    assert on_page_markdown(text) == (
        "its docstring (`pipelines/loader.py`), `pipelines/loader.py`, [x](engines.md)"
    )


def test_glossary_is_in_order():
    terms = re.findall(
        r"^\*\*(.+?)\*\*\n:", (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8"), re.M
    )
    assert len(terms) >= 25
    assert terms == sorted(terms, key=lambda term: term.strip("`.").lower())


def test_the_picture_of_a_window(tiny_photos, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs")
    from window_picture import draw

    for restart in ("auto", "none"):
        source = open_source([str(tiny_photos)])
        convert(source, tmp_path / f"{restart}.beton", Encoding(jpeg="recompress", restart=restart))
    draw(tmp_path / "auto.beton", 3, tmp_path / "window.png")
    assert Image.open(tmp_path / "window.png").width == 720
    with pytest.raises(ValueError, match="no restart markers"):
        draw(tmp_path / "none.beton", 3, tmp_path / "window.png")
