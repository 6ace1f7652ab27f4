"""Reports go to JSON and back; every committed result is one."""

import json
from dataclasses import dataclass, field

import pytest

from benchmarks.bottleneck.bench import BottleneckReport
from benchmarks.convert.bench import ConvertReport
from benchmarks.core.report import (
    RESULTS,
    Row,
    check_at_least_1,
    check_out,
    from_json,
    load,
    save,
    to_json,
)
from benchmarks.loaders.report import AgreementReport, LoaderReport, ScalingReport

KINDS = {
    "agreement": AgreementReport,
    "convert": ConvertReport,
    "loader-scaling": ScalingReport,
    "loader-": LoaderReport,
    "verdict-": BottleneckReport,
}


def kind_of(name: str) -> type | None:
    return next((kind for start, kind in KINDS.items() if name.startswith(start)), None)


COMMITTED = [path for path in sorted(RESULTS.glob("*.json")) if kind_of(path.stem)]


def test_most_results_are_reports():
    """The others were written by `fastclr evaluate`."""
    assert len(COMMITTED) >= 10


def numbers(data) -> dict[str, object]:
    """All leaves of a JSON document, by their path."""
    if isinstance(data, dict | list):
        items = data.items() if isinstance(data, dict) else enumerate(data)
        return {f"{key}.{rest}": leaf for key, item in items for rest, leaf in numbers(item).items()}
    return {"": data}


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_a_committed_result_stays_readable(path):
    kind = kind_of(path.stem)
    report = load(path, kind)
    written = to_json(report)
    assert from_json(kind, json.loads(json.dumps(written))) == report
    old, new = numbers(json.loads(path.read_text(encoding="utf-8"))), numbers(written)
    assert {name: new.get(name) for name in old} == old  # nothing is lost, and what is derived is the same


@dataclass(frozen=True)
class Part:
    size: int
    ratio: float | None = None


@dataclass(frozen=True)
class Whole:
    parts: list[Part]
    by_name: dict[str, Part] = field(default_factory=dict)
    pair: tuple[int, ...] = ()
    benchmark: str = "whole"


WHOLE = Whole([Part(1, 2.0), Part(3)], {"a": Part(5)}, (7, 8))


def test_nested_dataclasses_go_to_json_and_back(tmp_path):
    save(tmp_path / "deep" / "x.json", WHOLE)
    assert load(tmp_path / "deep" / "x.json", Whole) == WHOLE
    assert json.loads((tmp_path / "deep" / "x.json").read_text("utf-8")) == {
        "parts": [{"size": 1, "ratio": 2.0}, {"size": 3, "ratio": None}],
        "by_name": {"a": {"size": 5, "ratio": None}},
        "pair": [7, 8],
        "benchmark": "whole",
    }


@pytest.mark.parametrize(
    ("data", "named"),
    [
        ({"parts": [{"size": 1}, {"siez": 1, "size": 2}]}, r"parts\[1\].*'siez'"),
        ({"parts": [{"ratio": 1.0}]}, r"parts\[0\].*'size'"),
        ({"parts": [{"size": "1"}]}, r"parts\[0\].size is '1'"),
        ({"parts": [{"size": True}]}, r"parts\[0\].size is True"),
        ({"parts": {"size": 1}}, "parts is .* a list"),
        ({"parts": [], "by_name": []}, "by_name is .* an object"),
        ({"parts": [{"size": 1, "ratio": "x"}]}, r"parts\[0\].ratio is 'x'"),
        ([], "the report is .* an object"),
        ({}, "Whole lacks the field 'parts'"),
    ],
)
def test_what_is_not_such_a_report_is_an_error_that_names_file_and_field(tmp_path, data, named):
    path = tmp_path / "x.json"
    path.write_text(json.dumps(data))
    with pytest.raises(ValueError, match=named) as caught:
        load(path, Whole)
    assert str(path) in str(caught.value)


def test_a_file_that_is_not_json(tmp_path):
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(ValueError, match=r"x\.json is not a Whole"):
        load(tmp_path / "x.json", Whole)


def test_median_and_spread_of_a_row():
    row = Row(name="x", images_per_s=[30.0, 10.0, 20.0])
    assert (row.median, row.low, row.high, row.rounds) == (20, 10, 30, 3)
    assert from_json(Row, to_json(row)) == row


@dataclass
class Options:
    num_rounds: int | None = 1
    threads: int | None = None


def test_options_of_at_least_1():
    check_at_least_1(Options(), "num_rounds", "threads")
    with pytest.raises(ValueError, match="--num-rounds is 0"):
        check_at_least_1(Options(num_rounds=0), "threads", "num_rounds")
    with pytest.raises(ValueError, match="--threads is -1"):
        check_at_least_1(Options(threads=-1), "num_rounds", "threads")


def test_results_are_json_files(tmp_path):
    check_out(None)
    check_out(tmp_path / "x.json")
    with pytest.raises(ValueError, match="--out"):
        check_out(tmp_path / "x.txt")
