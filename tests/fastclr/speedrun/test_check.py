"""The rules: a record that keeps them holds, and a copy that breaks one is refused for it."""

import json
import shutil
from pathlib import Path

import pytest
from support.smoke_rung import smoke_log, write_smoke_ladder, write_smoke_record

from fastclr.speedrun import publish as publishing
from fastclr.speedrun.check import check_record
from fastclr.speedrun.publish import publish, write_record
from fastclr.speedrun.rungs import load_rungs


@pytest.fixture
def ladder(tmp_path):
    write_smoke_ladder(tmp_path)
    return tmp_path


@pytest.fixture
def record(ladder) -> Path:
    return write_smoke_record(ladder, [0.60, 0.62])


def edit_log(record: Path, number: int, kind: str, /, **values: object) -> None:
    """Change entries in the lines of one kind of a seed's log."""
    path = record / "logs" / f"seed{number}.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        if line["kind"] == kind:
            line.update(values)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def edit_summary(record: Path, **values: object) -> None:
    path = record / "record.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def edit_settings(record: Path, old: str, new: str, **settings: object) -> None:
    """Change the recipe everywhere, so that the change itself is what is refused."""
    recipe = (record / "recipe.toml").read_text()
    assert old in recipe
    recipe = recipe.replace(old, new)
    (record / "recipe.toml").write_text(recipe)
    for path in (record / "logs").glob("*"):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        lines[0]["recipe"] = recipe
        lines[0]["settings"].update(settings)
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_record_that_keeps_the_rules(record):
    assert check_record(record) == []
    assert record.name.endswith("_baseline")
    summary = json.loads((record / "record.json").read_text())
    assert summary["mean"] == pytest.approx(0.61)
    assert summary["sd"] == pytest.approx(0.0141421356)
    assert summary["clock_s"] == {"mean": 60.5, "min": 60.5, "max": 60.5}
    assert summary["statistics"] == {"sigma": summary["sd"], "z": None, "p": None}
    assert summary["pflop"] == pytest.approx(20 * summary["pflop_per_step"])
    assert "configurations tried: 3" in (record / "README.md").read_text().lower()


BREAKS = {
    "labels": lambda r: edit_log(r, 1, "trained", labels_seen=79),
    "val_knn": lambda r: edit_log(r, 0, "step", val_knn=0.5),
    "lacks README.md": lambda r: (r / "README.md").unlink(),
    "no logs": lambda r: shutil.rmtree(r / "logs"),
    "1 seeds": lambda r: (r / "logs/seed1.jsonl").unlink(),
    "without a choice": lambda r: [
        edit_log(r, 1, kind, seed=4) for kind in ("start", "trained", "evaluated")
    ],
    "steps": lambda r: edit_log(r, 1, "trained", steps=19),
    "budget": lambda r: edit_log(r, 1, "trained", cpu_s=131.0, clock_s=131.5),
    "clock_s": lambda r: edit_log(r, 1, "trained", clock_s=50.0),
    "conversion_cpu_s is missing": lambda r: [
        (edit_log(r, k, "start", conversion_cpu_s=0.0), edit_log(r, k, "trained", clock_s=60.0))
        for k in range(2)
    ],
    "warm_up": lambda r: edit_log(r, 0, "trained", warm_up_s=3.0),
    "threads": lambda r: edit_settings(r, "threads = 1", "threads = 2", **{"train.threads": 2}),
    "mean is": lambda r: edit_summary(r, mean=0.7),
    "seeds is": lambda r: edit_log(r, 1, "evaluated", knn=0.7),
    "statistics is": lambda r: edit_summary(r, statistics={"sigma": 0.01, "z": 3.0, "p": 0.001}),
    "lacks views.gray_p": lambda r: edit_settings(r, "gray_p = 0.2\n", ""),
    "not the recipe": lambda r: (r / "recipe.toml").write_text("[train]\nepochs = 30\n"),
    "views.size 16": lambda r: [edit_log(r, k, "start", settings=other_size(r, k)) for k in range(2)],
    "more than the 8 px": lambda r: edit_log(
        r, 0, "start", test={"fingerprint": "f2", "samples": 40, "side": 8}
    ),
    "and the recipe says 16": lambda r: [edit_log(r, k, "evaluated", size=12) for k in range(2)],
    "encoder": lambda r: edit_log(r, 0, "evaluated", encoder_after="other"),
    "protocol": lambda r: edit_log(r, 0, "evaluated", k=10),
    "views, k and T": lambda r: edit_log(r, 0, "evaluated", views_per_image=2),
    "data": lambda r: edit_log(r, 0, "evaluated", test_samples=39),
    "machine_class": lambda r: [edit_log(r, k, "start", machine_class="cpu-other") for k in range(2)],
    "code differs between": lambda r: edit_log(r, 1, "start", code="other"),
    "parameters": lambda r: [edit_log(r, k, "trained", parameters=6_000_000) for k in range(2)],
    "division 'fast'": lambda r: [edit_log(r, k, "start", division="fast") for k in range(2)],
    "4 views": lambda r: edit_settings(r, "num_views = 2", "num_views = 4", **{"views.num_views": 4}),
    "code.diff": lambda r: edit_summary(r, changed=True),
    "no commit": lambda r: edit_summary(r, commit=None),
    "configurations_tried": lambda r: edit_summary(r, configurations_tried=0),
    "start, steps, trained, evaluated": lambda r: (r / "logs/seed0.jsonl").write_text('{"kind": "start"}\n'),
    "fastclr speedrun 1": lambda r: (r / "record.json").write_text("{}"),
    "entry is missing": lambda r: (
        edit_log(r, 0, "evaluated", knn=None),
        edit_log(r, 1, "evaluated", knn=None),
    ),
}


def other_size(record: Path, seed: int) -> dict:
    start = json.loads((record / "logs" / f"seed{seed}.jsonl").read_text().splitlines()[0])
    return {**start["settings"], "views.size": 24}


@pytest.mark.parametrize("said", BREAKS)
def test_a_copy_that_breaks_a_rule_is_refused(record, said):
    BREAKS[said](record)
    broken = check_record(record)
    assert any(said in what for what in broken), broken


def test_budget_says_by_how_much(record):
    edit_log(record, 1, "trained", cpu_s=131.0, clock_s=131.5)
    assert "131.5 CPU seconds, 11.5 more than the 120" in " ".join(check_record(record))


def test_a_better_mean_must_be_significant(ladder):
    first = write_smoke_record(ladder, [0.60, 0.62])
    edit_summary(first, date="2026-01-01T00:00:00+00:00")
    # σ = 1.41 points: two seeds each need 2.33·σ = 3.3 points
    with pytest.raises(ValueError, match=r"not significantly.*z = 2\.12"):
        write_smoke_record(ladder, [0.64, 0.64], "slightly")
    better = write_smoke_record(ladder, [0.65, 0.65], "better")
    summary = json.loads((better / "record.json").read_text())
    assert summary["statistics"]["z"] == pytest.approx(0.04 / (0.0141421356 * 1.0))
    assert summary["statistics"]["p"] == pytest.approx(0.00234, rel=0.01)
    assert summary["against"]["record"] == first.name
    assert summary["against"]["difference"] == pytest.approx(0.04)
    assert check_record(better) == []
    # the first stays a record, although there is a better one now
    assert check_record(first) == []


def test_a_target_is_tested_with_the_fixed_sigma_and_then_time_decides(ladder):
    with pytest.raises(ValueError, match=r"target of 50\.0%: z = 1\.41"):
        write_smoke_record(ladder, [0.51, 0.51], rung="smoke-50")
    first = write_smoke_record(ladder, [0.52, 0.52], rung="smoke-50")
    edit_summary(first, date="2026-01-01T00:00:00+00:00")
    with pytest.raises(ValueError, match=r"time is 1\.0"):
        write_smoke_record(ladder, [0.55, 0.55], "slower", rung="smoke-50", cpu_s=61.0)
    faster = write_smoke_record(ladder, [0.52, 0.52], "faster", rung="smoke-50", cpu_s=30.0)
    summary = json.loads((faster / "record.json").read_text())
    assert summary["statistics"]["z"] == pytest.approx(0.02 * 2**0.5 / 0.01)
    assert summary["against"]["clock_ratio"] == pytest.approx(30.5 / 60.5)


def test_the_previous_record_run_again_is_what_counts(ladder):
    first = write_smoke_record(ladder, [0.60, 0.62])
    edit_summary(first, date="2026-01-01T00:00:00+00:00")
    rung = load_rungs(ladder / "rungs.toml")["smoke"]
    logs, again = ([smoke_log(k, a) for k in range(2)] for a in (0.66, 0.63))
    for log in logs:
        log.start["name"] = "new"
    summary = write_record(ladder / "new", ladder, rung, logs, again)
    assert (summary["against"]["mean"], summary["against"]["run_again"]) == (pytest.approx(0.63), True)
    with pytest.raises(ValueError, match=r"z = 2\.12"):
        publish(ladder / "new", ladder, rung)
    assert (ladder / "new" / "previous" / "seed1.jsonl").exists()


def test_the_previous_record_is_run_again_with_its_own_recipe(ladder):
    edit_summary(write_smoke_record(ladder, [0.60, 0.62]), date="2026-01-01T00:00:00+00:00")
    logs, again = ([smoke_log(k, a) for k in range(2)] for a in (0.7, 0.61))
    for log in again:
        log.start["recipe"] = log.start["recipe"].replace("epochs = 5", "epochs = 4")
    write_record(ladder / "new", ladder, load_rungs(ladder / "rungs.toml")["smoke"], logs, again)
    with pytest.raises(ValueError, match="not run with the recipe of"):
        publish(ladder / "new", ladder, load_rungs(ladder / "rungs.toml")["smoke"])


def test_changes_of_the_code_go_into_the_record(ladder, monkeypatch):
    monkeypatch.setattr(publishing, "uncommitted_changes", lambda: "diff --git a b\n")
    rung = load_rungs(ladder / "rungs.toml")["smoke"]
    logs = [smoke_log(k, 0.6) for k in range(2)]
    for log in logs:
        log.start["changed"] = True
    write_record(ladder / "new", ladder, rung, logs)
    place = publish(ladder / "new", ladder, rung)
    assert (place / "code.diff").read_text() == "diff --git a b\n"
    (place / "code.diff").unlink()
    assert "code.diff" in " ".join(check_record(place))
