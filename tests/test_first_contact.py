"""`import fastclr` and its public names, also beside folders named like our packages."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import fastclr
import pipelines

ROOT = Path(__file__).parent.parent


def python(program: str, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run a script that lies in a folder, as its user would; that folder is searched first."""
    (folder / "script.py").write_text(program)
    return subprocess.run(
        [sys.executable, *options, "script.py"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("name", ["pipelines", "benchmarks"])
@pytest.mark.parametrize("form", ["{}/__init__.py", "{}.py"])
def test_a_foreign_package_of_our_name_is_named(tmp_path, name, form):
    path = tmp_path / form.format(name)
    path.parent.mkdir(exist_ok=True)
    path.touch()
    for first in ("", f"import {name}; "):  # before ours, or loaded already
        done = python(f"{first}import fastclr", tmp_path)
        assert done.returncode == 1
        last = done.stderr.splitlines()[-1]
        assert last.startswith("ImportError: ")
        assert str(tmp_path / name) in last
        assert "rename" in last
    # what the message advises
    done = python("import fastclr; from fastclr import ViewSpec", tmp_path, "-P")
    assert done.returncode == 0, done.stderr
    path.rename(tmp_path / "other.py")
    assert python("from fastclr import ViewSpec", tmp_path).returncode == 0


@pytest.mark.parametrize("name", ["pipelines", "benchmarks"])
def test_a_folder_that_is_no_package_hides_nothing(tmp_path, name):
    """Python takes a folder without __init__.py only where there is no package of that name."""
    (tmp_path / name).mkdir()
    (tmp_path / name / "theirs.py").touch()
    done = python(f"from fastclr import ViewSpec; import {name}; print({name}.__file__)", tmp_path)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()) == ROOT / name / "__init__.py"


def test_a_missing_package_is_named(tmp_path):
    """A copy of one of our packages alone."""
    (tmp_path / "fastclr").mkdir()
    (tmp_path / "fastclr" / "__init__.py").write_text((ROOT / "fastclr" / "__init__.py").read_text())
    done = subprocess.run(
        [sys.executable, "-S", "-E", "-c", "import fastclr"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "ImportError: fastclr needs its package 'pipelines'" in done.stderr


def test_import_loads_no_library(tmp_path):
    heavy = "{'torch', 'numpy', 'numba', 'tyro', 'pipelines.loader'}"
    done = python(f"import fastclr, sys; print(sorted({heavy} & set(sys.modules)))", tmp_path)
    assert done.stdout == "[]\n", done.stderr
    # nor do the names that read files alone need torch
    done = python("from fastclr import BetonReader; import sys; print('torch' in sys.modules)", tmp_path)
    assert done.stdout == "False\n", done.stderr


def test_public_names():
    from fastclr.loss import nt_xent
    from fastclr.model import SimCLR
    from fastclr.optim import LARS

    expected = {"BetonReader", "LARS", "SimCLR", "TwoViewLoader", "ViewLoader", "ViewSpec"}
    expected |= {"load_encoder", "nt_xent"}
    assert set(fastclr.__all__) == expected
    assert expected <= set(dir(fastclr))
    assert (fastclr.SimCLR, fastclr.nt_xent, fastclr.LARS) == (SimCLR, nt_xent, LARS)
    for name in expected & set(pipelines.__all__):
        assert getattr(fastclr, name) is getattr(pipelines, name)
    with pytest.raises(ImportError, match="NoSuchName"):
        from fastclr import NoSuchName  # noqa: F401
