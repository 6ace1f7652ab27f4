"""pyproject.toml, constraints.txt, environment.yml and Dockerfile install the same set."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CONSTRAINTS = {
    canonicalize_name(Requirement(line).name): Requirement(line)
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if line and not line.startswith("#")
}
EXTRAS = "ffcv,dali"
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
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {
        "fastclr",
        "pipelines",
        "benchmarks",
    }
    assert "fastclr/recipes/demo.toml" in names
    for package in (
        "fastclr",
        "pipelines",
        "benchmarks",
    ):  # type checkers look into packages with this file only
        assert f"{package}/py.typed" in names


def test_the_version_has_one_source(capsys):
    """Package and command tell that of `fastclr.__version__`."""
    import fastclr
    from fastclr.cli.main import main

    metadata = pytest.importorskip("hatchling.metadata.core", reason="the build backend is not installed")
    manager = pytest.importorskip("hatchling.plugin.manager")
    found = metadata.ProjectMetadata(str(ROOT), manager.PluginManager())
    assert found.version == fastclr.__version__
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"fastclr {fastclr.__version__}\n"
