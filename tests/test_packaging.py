"""pyproject.toml, constraints.txt, environment.yml and Dockerfile install the same set."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import fastclr

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def constraints(name: str) -> dict[str, Requirement]:
    """The pinned versions of a constraints file, by package."""
    lines = [line for line in (ROOT / name).read_text().splitlines() if not line.startswith("#")]
    return {canonicalize_name(requirement.name): requirement for requirement in map(Requirement, lines)}


CONSTRAINTS = constraints("constraints.txt")
EXTRAS = "ffcv,dali,imagenet,parquet,remote"
"""What environment.yml and the Dockerfile add to the base."""


def is_pinned(extra: str) -> bool:
    return extra != "dali-cuda13"  # the same library built for another CUDA


def requirements() -> list[Requirement]:
    extras = PROJECT["optional-dependencies"]
    lines = PROJECT["dependencies"] + [
        line for extra, lines in extras.items() if is_pinned(extra) for line in lines
    ]
    return [Requirement(line) for line in lines]


@pytest.mark.parametrize("requirement", requirements(), ids=lambda requirement: requirement.name)
def test_every_dependency_has_a_tested_version(requirement):
    pinned = CONSTRAINTS[canonicalize_name(requirement.name)]
    (version,) = pinned.specifier
    assert version.operator == "=="
    assert requirement.specifier.contains(version.version)


def test_triton_is_no_direct_dependency():
    """It comes with torch where it exists; there is no macOS wheel."""
    assert "triton" not in {requirement.name for requirement in requirements()}


def test_environment_and_docker_install_the_same_set():
    environment = (ROOT / "environment.yml").read_text()
    assert f".[{EXTRAS}]" in environment
    assert "--constraint constraints.txt" in environment
    python = re.search(r"python=(\S+)", environment)[1]
    dockerfile = (ROOT / "Dockerfile").read_text()
    assert f"deploy/install.sh {EXTRAS}" in dockerfile
    assert re.search(rf"^FROM python:{re.escape(python)}-", dockerfile, re.MULTILINE)
    script = (ROOT / "deploy" / "install.sh").read_text()
    assert "--constraint constraints.txt" in script
    assert f"extras=${{1:-{EXTRAS}}}" in script
    assert "deploy/install.sh" in (ROOT / ".ci" / "run").read_text()


def test_what_ffcv_is_compiled_against_is_in_both():
    """Debian's names in the script, conda's in the environment."""
    script = (ROOT / "deploy" / "install.sh").read_text()
    environment = (ROOT / "environment.yml").read_text()
    for debian, conda in {
        "libopencv-dev": "libopencv",
        "libturbojpeg0-dev": "libjpeg-turbo",
        "pkg-config": "pkg-config",
        "g++": "cxx-compiler",
    }.items():
        assert debian in script
        assert f"- {conda}\n" in environment


def test_the_script_is_a_shell_script():
    subprocess.run(["sh", "-n", ROOT / "deploy" / "install.sh"], check=True)


def test_wheel_ships_three_packages(tmp_path):
    """The packages and their data, never the tests."""
    import zipfile

    hatchling = pytest.importorskip("hatchling.builders.wheel", reason="the build backend is not installed")
    (wheel,) = hatchling.WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    archive = zipfile.ZipFile(wheel)
    names = archive.namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {
        "fastclr",
        "pipelines",
        "benchmarks",
    }
    assert "fastclr/recipes/demo.toml" in names
    assert {"fastclr/py.typed", "pipelines/py.typed", "benchmarks/py.typed"} <= set(names)
    (metadata,) = (archive.read(name).decode() for name in names if name.endswith(".dist-info/METADATA"))
    assert f"\nVersion: {fastclr.__version__}\n" in metadata


def test_the_floor_is_what_the_project_admits():
    """CI tests each lower bound of pyproject.toml."""
    floor = {name: versions(pin, "==") for name, pin in constraints("constraints-floor.txt").items()}
    admitted = map(Requirement, PROJECT["dependencies"])
    assert floor == {canonicalize_name(bound.name): versions(bound, ">=") for bound in admitted}


def versions(requirement: Requirement, operator: str) -> list[Version]:
    assert all(specifier.operator == operator for specifier in requirement.specifier)
    return [Version(specifier.version) for specifier in requirement.specifier]


def test_one_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == fastclr.__version__
    assert f"\n## [{fastclr.__version__}]" in (ROOT / "CHANGELOG.md").read_text()
    assert "version" in PROJECT["dynamic"]


def test_workflows_run_the_gate_and_every_python_that_is_named():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    jobs = workflow["jobs"]
    commands = {name: [step.get("run", "") for step in job["steps"]] for name, job in jobs.items()}
    assert "bash .ci/run" in commands["gate"]
    assert any("constraints-floor.txt" in command for command in commands["floor"])
    named = [line.rpartition(" ")[2] for line in PROJECT["classifiers"] if ":: Python :: 3." in line]
    assert jobs["newest"]["strategy"]["matrix"]["python"] == named
    oldest = PROJECT["requires-python"].removeprefix(">=")
    assert named[0] == oldest
    (setup,) = (step["with"] for step in jobs["floor"]["steps"] if "with" in step)
    assert setup["python-version"] == oldest


def test_hooks_run_tools_of_the_dev_extra():
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    tools = {hook["entry"].split()[0] for repo in config["repos"] for hook in repo["hooks"]}
    assert tools == {"ruff", "mypy", "codespell"}
    assert tools <= {Requirement(line).name for line in PROJECT["optional-dependencies"]["dev"]}


def test_the_gate_installs_every_extra_but_alternatives():
    """A fresh clone has nothing; a package that is missing would make its tests skip, or fail."""
    (extras,) = re.findall(r"deploy/install\.sh (\S+)", (ROOT / ".ci" / "run").read_text())
    assert set(extras.split(",")) == set(PROJECT["optional-dependencies"]) - {"dali-cuda13"}
