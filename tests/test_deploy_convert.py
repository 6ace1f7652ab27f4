"""The array of jobs and the Indexed Job that convert: run as far as can be without a cluster."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pipelines.beton import BetonReader

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"


@pytest.fixture
def environment(tmp_path) -> dict[str, str]:
    """One in which `fastclr` is that of this tree."""
    command = tmp_path / "bin" / "fastclr"
    command.parent.mkdir()
    command.write_text(f'#!/bin/bash\nexec {sys.executable} -m fastclr.cli.main "$@"\n')
    command.chmod(0o755)
    return {**os.environ, "PATH": f"{command.parent}:{os.environ['PATH']}", "PYTHONPATH": f"{ROOT}"}


def run(command: list, environment: dict[str, str]) -> str:
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_slurm_array(environment, tiny_photos, tmp_path):
    """Three tasks, in any order; the first one a second time, as after a requeue."""
    assert subprocess.run(["bash", "-n", DEPLOY / "convert-slurm.sh"], check=False).returncode == 0
    script = [DEPLOY / "convert-slurm.sh", f"{tiny_photos}", f"{tmp_path / 'a.beton'}", "--seed", "3"]
    for task in ("2", "2", "0", "1"):
        assert not (tmp_path / "a.json").exists()
        slurm = {"SLURM_ARRAY_TASK_ID": task, "SLURM_ARRAY_TASK_MAX": "2", "SLURM_CPUS_PER_TASK": "2"}
        said = run(script, environment | slurm)
    assert "the set is complete" in said
    with BetonReader(tmp_path / "a.json") as reader:
        assert len(reader) == 40
        assert reader.sidecar["options"]["seed"] == 3
    # a part of the numbers, later
    reader.files[1].unlink()
    slurm = {"SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_TASK_MAX": "1", "SHARDS": "3"}
    run(script, environment | slurm)
    assert reader.files[1].exists()


def test_slurm_says_how_it_is_called(tiny_photos):
    for arguments in (["x"], [f"{tiny_photos}", "a.beton"]):
        done = subprocess.run(
            [DEPLOY / "convert-slurm.sh", *arguments], capture_output=True, text=True, check=False
        )
        assert done.returncode == 2
        assert "usage: sbatch --array" in done.stderr


@pytest.mark.slow
def test_kubernetes(environment, tiny_photos, tmp_path):
    job = yaml.safe_load((DEPLOY / "convert-kubernetes.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    assert spec["completionMode"] == "Indexed"
    (container,) = pod["containers"]
    said = {entry["name"]: entry["value"] for entry in container["env"]}
    assert spec["completions"] == int(said["SHARDS"]) >= spec["parallelism"]
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts.keys() == {volume["name"] for volume in pod["volumes"]}
    assert said["SOURCE"].startswith(mounts["images"])
    assert said["OUT"].startswith(mounts["data"])
    assert container["command"] == ["bash", "-c"]
    (script,) = container["args"]
    # what the Job would do, with less of everything
    less = {"SHARDS": "2", "SOURCE": f"{tiny_photos}", "OUT": f"{tmp_path / 'a.beton'}", "WORKERS": "1"}
    assert less.keys() == said.keys()
    for index in ("1", "0"):
        run(["bash", "-c", script], environment | less | {"JOB_COMPLETION_INDEX": index})
    assert len(BetonReader(tmp_path / "a.json")) == 40
