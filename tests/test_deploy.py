"""What deploy/ and docs/training.md tell people to run is real, as far as that can be seen without a cluster."""

import itertools
import os
import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml
from torch.distributed.run import get_args_parser

from fastclr.cli import train as train_cli
from fastclr.recipes import default_run_folder, recipe_names

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"


def commands(page: Path) -> list[list[str]]:
    """The command lines of a Markdown page: its indented blocks."""
    text = page.read_text().replace("\\\n", " ")
    return [shlex.split(line) for line in text.splitlines() if line.startswith("    ")]


def parse(words: list[str], monkeypatch) -> dict:
    """What `fastclr train …` at the end of a command line makes of its arguments, with its own parser."""
    starts = [i for i, pair in enumerate(itertools.pairwise(words)) if pair == ("fastclr", "train")]
    seen = {}

    def capture(arguments):
        folder = arguments.out or default_run_folder(arguments.recipe)
        seen.update(config=arguments.config, file=arguments.file, folder=folder, resume=arguments.resume)
        return 0

    monkeypatch.setattr(train_cli, "_train", capture)
    recipe, *options = words[starts[-1] + 2 :]
    # the folder of a run, which is not here
    if recipe.startswith("runs/"):
        assert "--out" not in options
        recipe = "cifar10-rn18"
    assert train_cli.main([recipe, *options]) == 0
    assert recipe in recipe_names()
    # nothing that is told to people is the old spelling
    assert not seen.pop("resume")
    return seen


def torchrun_settings(words: list[str]):
    """torchrun's own reading of its part of a command line."""
    start = words.index("torchrun") + 1
    if words[start - 2] == "--entrypoint":
        start += 1  # the image
    settings = get_args_parser().parse_args(words[start:])
    assert settings.no_python
    assert (settings.training_script, settings.training_script_args[0]) == ("fastclr", "train")
    return settings


@pytest.mark.parametrize("page", ["docs/training.md", "deploy/docker.md"])
def test_commands_of_the_pages(page, monkeypatch):
    lines = [
        words for words in commands(ROOT / page) if ("fastclr", "train") in set(itertools.pairwise(words))
    ]
    assert len(lines) >= 3
    for words in lines:
        parse(words, monkeypatch)
    several = [torchrun_settings(words) for words in lines if "torchrun" in words]
    assert several
    assert all(settings.nproc_per_node == "gpu" for settings in several)


def test_docker_lines_have_gpus_shared_memory_and_mounts(monkeypatch):
    lines = [words for words in commands(DEPLOY / "docker.md") if words[:2] == ["docker", "run"]]
    assert len(lines) == 3
    for words in lines:
        assert words[words.index("--gpus") + 1] == "all"
        assert "--ipc=host" in words
        mounts = [words[i + 1].split(":")[1] for i, word in enumerate(words) if word == "-v"]
        seen = parse(words, monkeypatch)
        assert [str(seen["file"].parent), str(seen["folder"].parent)] == mounts
        # several machines: the ranks of a restarted job must not meet in the store of those before
        assert ("--nnodes=2" in words) == ("TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1" in words)
    assert 'ENTRYPOINT ["fastclr"]' in (ROOT / "Dockerfile").read_text()


def test_kubernetes(monkeypatch, tmp_path):
    service, job = yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())
    assert (service["kind"], job["apiVersion"], job["kind"]) == ("Service", "batch/v1", "Job")
    assert service["spec"]["clusterIP"] == "None"
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    assert spec["completionMode"] == "Indexed"
    # pod names resolve as JOB-INDEX.SUBDOMAIN, if the subdomain is that of the service, which selects the pods
    assert pod["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    (container,) = pod["containers"]
    assert {m["name"] for m in container["volumeMounts"]} == {v["name"] for v in pod["volumes"]}
    (shm,) = (v for v in pod["volumes"] if v["name"] == "shm")
    assert shm["emptyDir"]["medium"] == "Memory"
    assert {m["mountPath"] for m in container["volumeMounts"]} >= {"/dev/shm", "/data", "/runs"}

    environment = {entry["name"]: entry["value"] for entry in container["env"]}
    assert environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] == "1"
    assert spec["completions"] == spec["parallelism"] == int(environment["NODES"])
    (script,) = container["args"]
    assert container["command"] == ["bash", "-c"]
    # the shell expands the line; in torchrun's place a program that prints what it was given
    fake(tmp_path / "torchrun", 'printf "%s\\n" "$@"')
    shell = {**environment, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    out = subprocess.run(["bash", "-c", script], env=shell, capture_output=True, text=True, check=True)
    words = ["torchrun", *out.stdout.splitlines()]
    settings = torchrun_settings(words)
    port = int(settings.rdzv_endpoint.split(":")[1])
    assert settings.rdzv_endpoint == f"{job['metadata']['name']}-0.{pod['subdomain']}:{port}"
    assert container["ports"] == [{"containerPort": port}]
    seen = parse(words, monkeypatch)
    assert (str(seen["file"]), str(seen["folder"])) == (environment["FILE"], environment["RUN"])


def fake(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/bash\n{script}\n")
    path.chmod(0o755)


@pytest.fixture
def slurm(tmp_path):
    """Starts the script with an srun, an scancel and an scontrol that write down what they were given."""
    fake(
        tmp_path / "srun",
        f'echo "$TORCH_DISABLE_SHARE_RDZV_TCP_STORE" >{tmp_path}/srun.environment; '
        f'printf "%s\\n" "$@" >{tmp_path}/srun.new; mv {tmp_path}/srun.new {tmp_path}/srun.args\n'
        # what the real one does on SIGTERM, to the step's processes too; Slurm's signals reach those past srun
        f'trap "echo KILL >{tmp_path}/srun.signal; exit 137" TERM\n'
        f'while [ -n "$SRUN_STAYS" ]; do [ -e {tmp_path}/step.TERM ] && exit 143; sleep 0.05; done',
    )
    fake(
        tmp_path / "scancel",
        f'echo "$@" >>{tmp_path}/scancel.args; [ "$*" = "--signal=TERM 123456.0" ] && touch {tmp_path}/step.TERM',
    )
    fake(
        tmp_path / "scontrol",
        f'[ "$1" = show ] && printf "node7\\nnode8\\n" || echo "$@" >>{tmp_path}/scontrol.args',
    )

    def start(*arguments: str, **environment: str) -> subprocess.Popen:
        slurm_sets = {"SLURM_JOB_ID": "123456", "SLURM_JOB_NODELIST": "node[7-8]", "SLURM_JOB_NUM_NODES": "2"}
        path = f"{tmp_path}:{os.environ['PATH']}"
        return subprocess.Popen(
            [DEPLOY / "slurm.sh", *arguments],
            env=os.environ | slurm_sets | {"PATH": path, "SRUN_STAYS": ""} | environment,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


def test_slurm_starts_torchrun_on_each_node(slurm, tmp_path, monkeypatch):
    assert subprocess.run(["bash", "-n", DEPLOY / "slurm.sh"], check=False).returncode == 0
    run = tmp_path / "run with a blank"
    for restarts in ("0", "1"):
        arguments = ("imagenet-rn50-100ep", "/data/train.beton", str(run), "--train.epochs", "800")
        process = slurm(*arguments, SLURM_RESTART_COUNT=restarts)
        _, err = process.communicate(timeout=30)
        assert (process.returncode, err) == (0, "")
        words = (tmp_path / "srun.args").read_text().splitlines()
        settings = torchrun_settings(words)
        assert (settings.nnodes, settings.nproc_per_node, settings.rdzv_id) == ("2", "gpu", "123456")
        assert settings.rdzv_endpoint == "node7:23456"
        assert (tmp_path / "srun.environment").read_text() == "1\n"
        seen = parse(words, monkeypatch)
        assert (str(seen["file"]), seen["folder"]) == ("/data/train.beton", run)
        assert seen["config"].train.epochs == 800
    assert not (tmp_path / "scontrol.args").exists(), "a run that is complete is not queued again"


def started(slurm, tmp_path) -> subprocess.Popen:
    process = slurm("imagenet-rn50-100ep", "/data/train.beton", str(tmp_path / "run"), SRUN_STAYS="1")
    deadline = time.monotonic() + 30
    while not (tmp_path / "srun.args").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(0.3)  # until the traps of both scripts are set
    return process


def test_slurm_saves_and_requeues(slurm, tmp_path):
    """USR1 comes before the time is up: the ranks are told, past srun, which would kill them."""
    process = started(slurm, tmp_path)
    process.send_signal(signal.SIGUSR1)
    process.communicate(timeout=30)
    assert process.returncode == 143
    assert (tmp_path / "scancel.args").read_text() == "--signal=TERM 123456.0\n"
    assert (tmp_path / "scontrol.args").read_text() == "requeue 123456\n"
    assert not (tmp_path / "srun.signal").exists()


def test_slurm_waits_for_the_ranks(slurm, tmp_path):
    """TERM comes from scancel, and reaches the ranks as well: the user wants no requeue then."""
    process = started(slurm, tmp_path)
    process.send_signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.5)
    (tmp_path / "step.TERM").touch()
    process.communicate(timeout=30)
    assert process.returncode == 143
    for name in ("scancel.args", "scontrol.args", "srun.signal"):
        assert not (tmp_path / name).exists(), name


def test_slurm_says_how_it_is_called(slurm):
    process = slurm("imagenet-rn50-100ep")
    assert "usage: sbatch deploy/slurm.sh RECIPE FILE.beton RUN_DIR" in process.communicate(timeout=30)[1]
    assert process.returncode == 2
