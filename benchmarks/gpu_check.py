"""`make gpu-check`: on a machine with a GPU, its tests and then all GPU benchmarks, in under eight minutes.

    python -m benchmarks.gpu_check --out FOLDER        (or OUT=FOLDER in the environment)

Each kernel's tests run first, and a kernel whose tests are red is not timed.  Every part is a process of its own
with a time limit: a crash or hang affects only its own part, and on timeout the tests that have finished count.  The
folder then holds `loss.json`, `optimizer.json`, `augment.json`, `step.json`, `summary.json` (tests and goals) and
`gpu-check.log` (everything that was printed).
If packages are missing, the rows that need them say so.

Exit code: 0 all tests passed and all benchmarks are done; 1 something failed or was stopped; 2 there is no GPU, or a
package is missing that all benchmarks need.
"""

import argparse
import importlib
import importlib.util
import os
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, ClassVar

from benchmarks.core.report import save
from benchmarks.kernels.targets import NOT_MEASURED, Judgement, judge, load_rows

if TYPE_CHECKING:
    from benchmarks.core.machine import Machine

ROOT = Path(__file__).parent.parent
ALL_S = 475
"""Time limit for everything, seconds; parts that have not begun by then are left out."""
SIGINT_GRACE_S = 3
"""Grace period after SIGINT, so that pytest can write its report."""
NEEDED = ("tyro", "rich", "psutil")
"""Packages that all benchmarks need."""
SETTINGS: dict[str, dict[str, Any]] = {
    "loss": {"rounds": 3, "turn_s": 0.05},
    "optimizer": {"rounds": 5},
    "augment": {"rounds": 5},
    "step": {"rounds": 3},
}
"""Options of the benchmarks that keep them within their limits; the rest are the defaults."""


@dataclass(frozen=True)
class Part:
    """Tests, and the benchmark that runs only if they pass."""

    name: str
    tests: tuple[str, ...]
    tests_s: int
    """Time limit, seconds."""
    benchmark_s: int = 0
    """Time limit, seconds; 0: there is no benchmark."""


PARTS = (
    Part("loss", ("tests/fastclr/loss",), 50, 90),
    Part("optimizer", ("tests/fastclr/optim",), 30, 20),
    Part("augment", ("tests/pipelines/ops/augment", "tests/pipelines/ops/crop/test_crop_gpu.py"), 80, 35),
    Part("step", ("tests/fastclr/model", "tests/fastclr/train"), 40, 70),
)
REST = Part("other", ("tests",), 60)
"""What is marked `gpu` elsewhere."""


@dataclass
class TestResults:
    """Results of a part's tests."""

    __test__ = False  # not a test class of pytest

    passed: int = 0
    skipped: int = 0
    red: list[str] = field(default_factory=list)
    """Failed tests, files that could not be collected, or why there is no result."""
    missing: list[str] = field(default_factory=list)
    """Files that could not be collected for a package that is not installed here."""
    stopped: str = ""
    """Why some tests did not run."""
    seconds: float = 0.0

    derived: ClassVar[tuple[str, ...]] = ("green",)

    @property
    def green(self) -> bool:
        """Whether some passed and none failed."""
        return self.passed > 0 and not self.red


@dataclass
class Summary:
    """Content of summary.json; filled part by part."""

    machine: "Machine"
    tests: dict[str, TestResults] = field(default_factory=dict)
    benchmarks: dict[str, str] = field(default_factory=dict)
    """Name → "done", or why not."""
    targets: list[Judgement] = field(default_factory=list)
    seconds: float = 0.0


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_check", description="GPU tests and benchmarks"
    )
    default = Path(os.environ.get("OUT") or ROOT / "benchmarks" / "results" / "gpu")
    parser.add_argument(
        "--out", type=Path, default=default, help="folder of the results (default: $OUT, or %(default)s)"
    )
    parser.add_argument(
        "--benchmark", choices=[part.name for part in PARTS], help="run this one alone, untested"
    )
    options = parser.parse_args(argv)
    if options.benchmark:
        run_benchmark(options.benchmark, options.out)
        return 0
    return check(options.out)


def run_benchmark(name: str, out: Path) -> None:
    """Run a benchmark in this process, into OUT/NAME.json."""
    module = importlib.import_module(f"benchmarks.kernels.{name}")
    module.run(module.Options(**SETTINGS[name], out=out / f"{name}.json"))


def check(out: Path) -> int:
    """Run everything, write and print the summary, and return the exit code."""
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        print(f"gpu-check needs {' and '.join(missing)}: pip install {' '.join(missing)}", file=sys.stderr)
        return 2
    import torch

    from benchmarks.core.machine import describe_machine

    out.mkdir(parents=True, exist_ok=True)
    for stale in [out / f"{part.name}.json" for part in PARTS]:
        stale.unlink(missing_ok=True)
    start = time.monotonic()
    summary = Summary(describe_machine())
    if not torch.cuda.is_available():
        summary.benchmarks = {part.name: f"{NOT_MEASURED}: torch sees no GPU here" for part in PARTS}
        _finish(summary, out, start)
        return 2
    kernels: dict[str, TestResults] = {}
    with (out / "gpu-check.log").open("w", encoding="utf-8") as log:
        for part in (*PARTS, REST):
            left = ALL_S - (time.monotonic() - start)
            tests = run_tests(part, log, min(part.tests_s, left))
            kernels[part.name] = tests
            summary.tests[part.name] = tests
            if part.benchmark_s:
                left = ALL_S - (time.monotonic() - start)
                needed = kernels if part.name == "step" else {part.name: tests}
                outcome = _timed(part, needed, log, out, min(part.benchmark_s, left))
                summary.benchmarks[part.name] = outcome
            _finish(summary, out, start)  # after every part: a run that is cut short leaves what it has
    good = all(outcome == "done" for outcome in summary.benchmarks.values())
    bad = any(tests.red or tests.stopped for tests in summary.tests.values())
    return 0 if good and not bad else 1


def run_tests(part: Part, log: Any, limit_s: float) -> TestResults:
    """Run a part's tests that are marked `gpu`, in their own process."""
    files = [test for test in part.tests if (ROOT / test).exists()]
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "--continue-on-collection-errors", *files]
    if part is REST:
        command += [f"--ignore={test}" for other in PARTS for test in other.tests]
    if importlib.util.find_spec("simplejpeg") is None:
        command.append("--noconftest")  # its fixtures make JPEGs, which the kernels' tests do without
    begun = time.monotonic()
    with TemporaryDirectory() as folder:
        found = Path(folder) / "tests.xml"
        # one thread each: the tensors of the reference are small, and threads that wait for each other take minutes
        code = _run([*command, f"--junitxml={found}"], log, limit_s, OMP_NUM_THREADS="1")
        tests = read_junit(found) if found.exists() else TestResults(red=["no result: see gpu-check.log"])
    if code is None:
        tests.stopped = f"stopped after {limit_s:.0f} s"
        tests.passed = max(0, tests.passed - 1)  # the one that was stopped has no failure in the file either
    elif code not in (0, 1, 2, 5):  # well, failures, collection errors, no test selected
        tests.red.append(f"pytest ended with code {code}")
    tests.seconds = round(time.monotonic() - begun, 1)
    return tests


def read_junit(path: Path) -> TestResults:
    """Count pytest's results; a file that needs a package that is not installed counts as missing, not as failed."""
    tests = TestResults()
    for case in ET.parse(path).getroot().iter("testcase"):
        name = ".".join(filter(None, (case.get("classname"), case.get("name"))))
        bad = case.find("error") if case.find("failure") is None else case.find("failure")
        if bad is not None:
            package = _missing_package(f"{bad.get('message')} {bad.text}")
            (tests.red if package is None else tests.missing).append(
                name + (f": no {package}" if package else "")
            )
        elif case.find("skipped") is not None:
            tests.skipped += 1
        else:
            tests.passed += 1
    return tests


def _missing_package(text: str) -> str | None:
    """Return the package that an import error names, unless it is one of ours."""
    _, found, rest = text.partition("ModuleNotFoundError: No module named '")
    package = rest.partition("'")[0].partition(".")[0]
    return package if found and package not in ("fastclr", "pipelines", "benchmarks") else None


def _timed(part: Part, needed: dict[str, TestResults], log: Any, out: Path, limit_s: float) -> str:
    """Run a part's benchmark if the tests that it needs have passed (a step needs all); return how that ended."""
    for name, tests in needed.items():
        if not tests.green:
            reason = tests.red[0] if tests.red else "none of them ran"
            return f"{NOT_MEASURED}: the tests of {name} are not green ({reason})"
    if limit_s < 5:
        return f"{NOT_MEASURED}: no time was left"
    command = [sys.executable, "-m", "benchmarks.gpu_check", "--benchmark", part.name, "--out", str(out)]
    code = _run(command, log, limit_s)
    if code is None:
        return f"stopped after {limit_s:.0f} s; its file holds what was measured by then"
    return "done" if code == 0 else f"failed with code {code}: see gpu-check.log"


def _run(command: list[str], log: Any, limit_s: float, **variables: str) -> int | None:
    """Run a command whose output goes to the log; return its exit code, or None if it was stopped at the time limit.

    SIGINT stops it first, so that pytest writes the results that it has.
    """
    print(f"\n$ {' '.join(command)}", file=log, flush=True)
    if limit_s <= 0:
        return None
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "COLUMNS": "120", "OUT": "", **variables}
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
    )
    try:
        return process.wait(limit_s)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(SIGINT_GRACE_S)
        return None
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # and the processes that it started
        process.wait()


def _finish(summary: Summary, out: Path, start: float) -> None:
    summary.seconds = round(time.monotonic() - start, 1)
    summary.targets = [
        judgement for part in PARTS for judgement in judge(part.name, load_rows(out / f"{part.name}.json"))
    ]
    save(out / "summary.json", summary)
    lines = [f"after {summary.seconds:.0f} s, on {summary.machine.gpu or 'a machine without GPU'}:"]
    for name, tests in summary.tests.items():
        state = "green" if tests.green else ("RED" if tests.red else "not run")
        state += f", {tests.stopped}" if tests.stopped else ""
        lines.append(f"  tests {name}: {state}, {tests.passed} passed, {tests.skipped} skipped")
        lines += [f"    {reason}" for reason in (*tests.red, *tests.missing)]
    lines += [f"  benchmark {name}: {outcome}" for name, outcome in summary.benchmarks.items()]
    for target in summary.targets:
        found = f"{target.measured}, {target.state}" if target.measured else target.state
        lines.append(f"  goal {target.what} {target.goal}: {found}")
    print("\n".join(lines), flush=True)


if __name__ == "__main__":
    sys.exit(main())
