import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from fastclr.train.distributed import Ranks, process_group, ranks_from_env


@pytest.fixture
def no_torchrun(monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_one_process_is_the_trivial_case(no_torchrun):
    assert ranks_from_env() == Ranks(rank=0, world_size=1, local_rank=0)
    assert ranks_from_env().is_main
    with process_group(ranks_from_env(), torch.device("cpu")):
        assert not dist.is_initialized()


def test_torchrun_says_who_we_are(no_torchrun):
    for name, value in {"RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8"}.items():
        no_torchrun.setenv(name, value)
    assert ranks_from_env() == Ranks(rank=5, world_size=8, local_rank=1)
    assert not ranks_from_env().is_main


@pytest.mark.parametrize(
    "environment",
    [{"RANK": "0"}, {"WORLD_SIZE": "2"}, {"RANK": "x", "WORLD_SIZE": "2"}, {"RANK": "2", "WORLD_SIZE": "2"}],
)
def test_half_an_environment_is_refused(no_torchrun, environment):
    for name, value in environment.items():
        no_torchrun.setenv(name, value)
    with pytest.raises(ValueError, match="RANK"):
        ranks_from_env()


JOIN = """
import sys, torch, torch.distributed as dist
from fastclr.train.distributed import process_group, ranks_from_env

ranks = ranks_from_env()
with process_group(ranks, torch.device("cpu")):
    total = torch.tensor([float(ranks.rank + 1)])
    dist.all_reduce(total)
    sys.stdout.write(f"{ranks.rank} {dist.get_backend()} {total.item()}\\n")  # one write: the ranks share stdout
assert not dist.is_initialized()
"""


@pytest.mark.slow
def test_two_ranks_join_over_gloo(no_torchrun, tmp_path):
    script = tmp_path / "join.py"
    script.write_text(JOIN)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        str(script),
    ]
    paths = os.pathsep.join([str(Path(__file__).parents[3]), *sys.path])
    result = subprocess.run(
        command, capture_output=True, text=True, timeout=120, env=os.environ | {"PYTHONPATH": paths}
    )
    assert result.returncode == 0, result.stderr
    assert sorted(result.stdout.split("\n")) == ["", "0 gloo 3.0", "1 gloo 3.0"]
