"""The pages' tables, from reports made by hand."""

from dataclasses import replace

import pytest

from benchmarks.core import readme
from benchmarks.core.harness import LoaderRow
from benchmarks.core.machine import Machine
from benchmarks.core.readme import engines_tables, loader_caption, loader_table, readme_tables
from benchmarks.core.report import RESULTS, load, save
from benchmarks.loaders.agreement import unmeasured
from benchmarks.loaders.report import FileFacts, LoaderReport, LoaderSettings, StoredAs
from fastclr.markers import fill


def row(name: str, images_per_s: float, **changes: str) -> LoaderRow:
    return LoaderRow(name=name, images_per_s=[images_per_s] * 5, **changes)


def made(jpeg: str, limit: float, native: float, peer: LoaderRow) -> LoaderReport:
    return LoaderReport(
        Machine(processor="Zen", commit="abc", versions={"torch": "2.8", "torchvision": "0.23"}),
        FileFacts("x.beton", 2000, 10**6, 500, StoredAs("jpg", jpeg, 500, 90)),
        LoaderSettings(224, 4, 64),
        row("decode limit", limit),
        {"crops": [row("fastclr native", native)], "full": [row("fastclr native", native / 2), peer]},
    )


PEER = row("FFCV", 300.0, lacks="hue, blur")
REPORTS = [
    made("recompress", 2000.0, 1500.0, PEER),
    made("keep", 1000.0, 800.0, replace(PEER, error="it broke")),
]


def test_loader_table():
    assert loader_table(REPORTS).splitlines() == [
        "| source images/s (share of the decode limit) | `--jpeg recompress` | `--jpeg keep` |",
        "|---|---:|---:|",
        "| **decode limit** | 2,000 | 1,000 |",
        "| two crops: fastclr native | 1,500 (75%) | 800 (80%) |",
        "| full augmentation: fastclr native | 750 (38%) | 400 (40%) |",
        "| full augmentation: FFCV (lacks hue, blur) | 300 (15%) | not measured |",
    ]


def test_a_row_that_the_other_report_does_not_have():
    shorter = replace(REPORTS[1], results={"crops": []})
    lines = loader_table([REPORTS[0], shorter]).splitlines()
    assert lines[3] == "| two crops: fastclr native | 1,500 (75%) | not measured |"


def test_loader_caption_names_machine_and_commit():
    caption = loader_caption(REPORTS[0])
    for part in ("5 interleaved rounds", "4 threads", "Zen", "2000 images", "≤ 500", "commit abc"):
        assert part in caption


def test_fill():
    text = "a\n<!-- t -->\nold\nold\n<!-- /t -->\nb <!-- u -->\n<!-- /u -->\n"
    assert fill(text, {"t": "new"}) == "a\n<!-- t -->\nnew\n<!-- /t -->\nb <!-- u -->\n<!-- /u -->\n"
    assert fill(fill(text, {"t": "new"}), {"t": "new"}) == fill(text, {"t": "new"})


def test_fill_an_empty_place():
    assert fill("<!-- u -->\n<!-- /u -->\n", {"u": "x"}) == "<!-- u -->\nx\n<!-- /u -->\n"


def test_fill_needs_both_markers():
    with pytest.raises(ValueError, match="<!-- t -->"):
        fill("<!-- t -->\nno end\n", {"t": "new"})


def test_save_and_load(tmp_path):
    save(tmp_path / "deep" / "x.json", REPORTS[0])
    assert load(tmp_path / "deep" / "x.json", LoaderReport) == REPORTS[0]


def test_check_fails_on_an_old_table(tmp_path, monkeypatch):
    monkeypatch.setattr(readme, "__file__", str(tmp_path / "benchmarks" / "core" / "readme.py"))
    monkeypatch.setattr(readme, "RESULTS", tmp_path / "results")
    for name, found in zip(("recompress", "lossless", "keep"), [*REPORTS, REPORTS[1]], strict=True):
        save(tmp_path / "results" / f"loader-{name}.json", found)
    save(tmp_path / "results" / "agreement.json", unmeasured("cpu"))
    (tmp_path / "docs").mkdir()
    engines = tmp_path / "docs" / "engines.md"
    engines.write_text("".join(f"<!-- {name} -->\n<!-- /{name} -->\n" for name in engines_tables()))
    page = tmp_path / "README.md"
    page.write_text("# title\n" + "".join(f"<!-- {name} -->\n<!-- /{name} -->\n" for name in readme_tables()))
    with pytest.raises(SystemExit, match=r"benchmarks\.core\.readme"):
        readme.main(check=True)
    readme.main(check=False)
    readme.main(check=True)
    assert "1,500 (75%)" in page.read_text("utf-8")
    assert "| LARS step, ResNet-50 | ≤ 300 µs | not measured |" in page.read_text("utf-8")


def test_readme_shows_the_committed_results():
    """A number stands in README.md only if a command printed it into benchmarks/results."""
    for name, tables in (("README.md", readme_tables()), ("docs/engines.md", engines_tables())):
        page = (RESULTS.parent.parent / name).read_text(encoding="utf-8")
        assert fill(page, tables) == page
