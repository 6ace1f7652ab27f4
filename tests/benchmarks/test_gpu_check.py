"""`make gpu-check`: its reading of test results, its refusal to time red kernels, and its limits."""

import io
import json
import subprocess
import sys
import time

import pytest
import torch

from benchmarks import gpu_check
from benchmarks.gpu_check import ALL_S, PARTS, REST, ROOT, TestResults, check, read_junit

SUITE = {
    "test_kernel.py": """
import pytest
def test_good(): pass
def test_bad(): assert 1 == 2
@pytest.mark.skip
def test_left_out(): pass
""",
    "test_peer.py": "import nosuchpeer\ndef test_peer(): pass\n",
    "test_ours.py": "import pipelines.nosuchmodule\ndef test_ours(): pass\n",
}


def test_red_skipped_and_missing_are_told_apart(tmp_path):
    for name, text in SUITE.items():
        (tmp_path / name).write_text(text)
    found = tmp_path / "tests.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-c", "/dev/null", "--continue-on-collection-errors"]
    subprocess.run(
        [*command, f"--junitxml={found}", str(tmp_path)], cwd=ROOT, capture_output=True, check=False
    )
    tests = read_junit(found)
    assert (tests.passed, tests.skipped) == (1, 1)
    assert sorted(name.rpartition(".")[2] for name in tests.red) == ["test_bad", "test_ours"]
    assert len(tests.missing) == 1 and tests.missing[0].endswith("test_peer: no nosuchpeer")
    assert not tests.green


@pytest.mark.parametrize(
    ("tests", "reason"),
    [
        (TestResults(passed=9, red=["test_kernel.test_bad"]), "test_kernel.test_bad"),
        (TestResults(skipped=9), "none of them ran"),
    ],
)
def test_a_kernel_that_is_not_green_is_not_timed(tests, reason, monkeypatch, tmp_path):
    monkeypatch.setattr(gpu_check, "_run", lambda *_: pytest.fail("it was run"))
    outcome = gpu_check._timed(PARTS[0], {"loss": tests}, io.StringIO(), tmp_path, 60)
    assert outcome == f"not measured: the tests of loss are not green ({reason})"


def test_a_step_needs_every_kernel_green(monkeypatch, tmp_path):
    commands = []
    monkeypatch.setattr(gpu_check, "_run", lambda command, *_: commands.append(command) or 0)
    good = TestResults(passed=1)
    step = next(part for part in PARTS if part.name == "step")
    needed = {"loss": good, "optimizer": TestResults(passed=3, red=["x"]), "step": good}
    assert "the tests of optimizer are not green (x)" in gpu_check._timed(step, needed, None, tmp_path, 60)
    assert not commands
    assert gpu_check._timed(step, {"loss": good, "step": good}, None, tmp_path, 60) == "done"
    assert commands[0][-4:] == ["--benchmark", "step", "--out", str(tmp_path)]


def test_everything_fits_into_eight_minutes():
    assert sum(part.tests_s + part.benchmark_s for part in (*PARTS, REST)) <= ALL_S < 8 * 60
    for part in PARTS:
        assert all((ROOT / test).exists() for test in part.tests), part


def test_a_part_is_stopped_at_its_limit_with_what_it_started(tmp_path):
    marker = tmp_path / "alive"
    child = f"import time, pathlib; time.sleep(3); pathlib.Path({str(marker)!r}).touch()"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    begun = time.monotonic()
    with (tmp_path / "log").open("w") as log:
        assert gpu_check._run([sys.executable, "-c", parent], log, 1.0) is None
        assert time.monotonic() - begun < 2.5
        assert gpu_check._run([sys.executable, "-c", "print('heard'); raise SystemExit(3)"], log, 20) == 3
    time.sleep(max(0.0, 3.5 - (time.monotonic() - begun)))
    assert not marker.exists()
    assert "heard" in (tmp_path / "log").read_text()


def test_tests_that_finished_before_the_timeout_count(tmp_path):
    slow = tmp_path / "test_slow.py"
    slow.write_text(
        "import os, time, pytest\n"
        "pytestmark = pytest.mark.gpu\n"
        "def test_one_thread(): assert os.environ['OMP_NUM_THREADS'] == '1'\n"
        "def test_slow(): time.sleep(60)\n"
    )
    with (tmp_path / "log").open("w") as log:
        tests = gpu_check.run_tests(gpu_check.Part("slow", (str(slow),), 10), log, 10)
    assert (tests.passed, tests.red, tests.stopped) == (1, [], "stopped after 10 s")
    assert tests.green
    assert tests.seconds < 14


def test_packages_that_everything_needs(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(gpu_check, "NEEDED", ("rich", "nosuchpackage", "northisone"))
    assert check(tmp_path / "out") == 2
    assert capsys.readouterr().err == (
        "gpu-check needs nosuchpackage and northisone: pip install nosuchpackage northisone\n"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="here everything would be measured")
def test_without_a_gpu_every_goal_is_not_measured(tmp_path, capsys):
    (tmp_path / "loss.json").write_text("{}")  # of an earlier run: it must not be taken for this one's
    assert check(tmp_path) == 2
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert {target["state"] for target in summary["targets"]} == {"not measured"}
    assert set(summary["benchmarks"].values()) == {"not measured: torch sees no GPU here"}
    assert not (tmp_path / "loss.json").exists()
    assert "not measured" in capsys.readouterr().out


def test_benchmarks_run_with_their_defaults_by_name(tmp_path, monkeypatch):
    """What a part's process does, on the smallest of them."""
    monkeypatch.setitem(gpu_check.SETTINGS, "optimizer", {"rounds": 1})
    gpu_check.run_benchmark("optimizer", tmp_path)
    assert json.loads((tmp_path / "optimizer.json").read_text())["benchmark"] == "optimizer"
