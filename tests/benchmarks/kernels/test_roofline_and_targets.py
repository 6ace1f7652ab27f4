"""Floors against the figures they were derived with; goals judged by made-up rows."""

import pytest

from benchmarks.core.machine import Machine
from benchmarks.core.report import save
from benchmarks.kernels.report import KernelGroup, KernelReport
from benchmarks.kernels.roofline import H100, augment_floor_s, flops_floor_s, lars_floor_s, nt_xent_floor_s
from benchmarks.kernels.targets import TARGETS, judge, targets_table, time_text
from benchmarks.kernels.timing import KernelRow

H100_NAME = "NVIDIA H100 80GB HBM3"


@pytest.mark.parametrize(("rows", "microseconds"), [(8192, 64), (16384, 258), (65536, 4123)])
def test_nt_xent_is_bound_by_its_products(rows, microseconds):
    assert nt_xent_floor_s(rows, 128) * 1e6 == pytest.approx(microseconds, rel=0.01)


def test_nt_xent_of_narrow_rows_is_bound_by_its_exponentials():
    # 2·8192² exps at 132 · 16 · 1.7 GHz; at width 32 the products would take 16 µs only
    assert nt_xent_floor_s(8192, 32) == pytest.approx(2 * 8192**2 / (132 * 16 * 1.7e9))
    assert nt_xent_floor_s(8192, 32) * 1e6 == pytest.approx(37.4, abs=0.1)


def test_memory_bound_floors():
    assert lars_floor_s(25_557_032) * 1e6 == pytest.approx(238.5, abs=0.1)
    assert augment_floor_s(512, 224) * 1e6 == pytest.approx(77.1, abs=0.1)
    assert augment_floor_s(512, 224, bytes_per_value=4) / augment_floor_s(512, 224) == pytest.approx(5 / 3)
    assert flops_floor_s(H100.half_flops) == 1


def rows(**fields) -> list[KernelRow]:
    return [KernelRow("other", H100_NAME), KernelRow("judged", **{"device": H100_NAME, **fields})]


def test_goals_are_judged_by_the_row_that_carries_their_key():
    (found,) = judge("optimizer", rows(target="lars-resnet50", turns_s=[0.29e-3], floor_share=0.82))
    assert (found.state, found.measured, found.goal) == ("met", "290 µs", "≤ 300 µs")
    assert (found.floor_share, found.device) == (0.82, H100_NAME)
    (found,) = judge("optimizer", rows(target="lars-resnet50", turns_s=[0.31e-3]))
    assert found.state == "missed"


def test_what_must_be_reached_from_above():
    (found,) = judge("augment", rows(target="augment-224", views_per_s=1.2e6))
    assert found.state == "met"
    (found,) = judge("augment", rows(target="augment-224", views_per_s=1.0e6))
    assert (found.state, found.measured) == ("missed", "1,000,000/s")


@pytest.mark.parametrize(
    "row",
    [
        {"target": "lars-resnet50", "device": "cpu", "turns_s": [1e-6]},  # on a CPU nothing is reached
        {"target": "lars-resnet50", "error": "failed"},
        {"turns_s": [1e-6]},  # another row
    ],
)
def test_not_measured(row):
    (found,) = judge("optimizer", rows(**row))
    assert found.state == "not measured" and found.measured is None
    assert judge("optimizer", [])[0].state == "not measured"


def test_table_has_every_goal_measured_or_not(tmp_path):
    group = KernelGroup("NT-Xent", rows(target="loss-8192", turns_s=[100e-6], floor_share=0.644))
    save(tmp_path / "loss.json", KernelReport("loss", Machine(), {}, [group]))
    table = targets_table(tmp_path)
    assert table.count("not measured") == len(TARGETS) - 1
    assert "| NT-Xent, 8192 rows of 128, forward + backward | ≤ 110 µs | 100 µs | 64% | met |" in table
    assert table.endswith(f"Measured on {H100_NAME}.")


def test_a_file_that_is_no_report_is_named(tmp_path):
    (tmp_path / "loss.json").write_text("{}")
    with pytest.raises(ValueError, match=r"loss\.json"):
        targets_table(tmp_path)


def test_times_have_three_digits_and_a_unit():
    found = [time_text(s) for s in (2.5, 0.0123, 0.00661, 0.000239, 4.2e-6)]
    assert found == ["2.50 s", "12.3 ms", "6.61 ms", "239 µs", "4.20 µs"]
