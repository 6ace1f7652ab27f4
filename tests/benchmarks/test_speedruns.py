"""The ladder in the tree: every record keeps the rules, and every number of the tables follows from its logs."""

import re

import pytest

from benchmarks.speedruns import FOLDER
from fastclr.cli.speedrun import main
from fastclr.recipes import load_recipe
from fastclr.speedrun.check import check_record
from fastclr.speedrun.dry_run import dry_run
from fastclr.speedrun.rungs import load_rungs
from fastclr.speedrun.tables import fill_page

RECORDS = sorted(path.parent for path in FOLDER.glob("*/*/record.json"))


@pytest.mark.parametrize("record", RECORDS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_record_keeps_the_rules(record):
    assert check_record(record) == []


def test_the_tables_follow_from_the_records():
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert page == fill_page(page, FOLDER), "run fastclr speedrun table"


def test_list_has_every_rung_and_says_what_was_not_run(capsys):
    assert main(["list"]) == 0
    said = capsys.readouterr().out
    rungs = load_rungs(FOLDER / "rungs.toml")
    assert re.findall(r"^(\S+)", said, re.M) == list(rungs)
    assert said.count("not run") + len(RECORDS) >= len(rungs)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cifar10-20cpu", "cifar10-90", "imagenette", "imagenet-30"])
def test_every_kind_of_rung_can_be_planned_on_any_file(name, keep_beton):
    """Shapes, steps, PFLOP, memory and rates, on a file of 250 photos and without a GPU."""
    rung = load_rungs(FOLDER / "rungs.toml")[name]
    config = load_recipe(rung.recipe)
    report = dry_run(rung, config, [str(keep_beton)], seconds=0.1)
    own, size = config.train.batch_size // max(1, rung.gpus), config.view_size
    width = {10: 256, 18: 512, 50: 2048}[config.model.depth]
    assert f"views [2, {own}, 3, {size}, {size}]" in report
    assert f"h [{2 * own}, {width}]" in report and f"z [{2 * own}, 128]" in report
    assert f"{config.train.epochs} epochs" in report
    assert ("(predicted), " in report) == (rung.epochs is None)
    for word in ("not run", "PFLOP", "GiB of memory", "(predicted) and needs", "images/s here"):
        assert word in report, word
