"""Processors and memory of a process in control groups, of both versions, as Linux shows them in files."""

import os

import psutil
import pytest

from pipelines.system import cgroups
from pipelines.system.cpus import cores
from pipelines.system.memory import available_memory

GIB = 1 << 30


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Eight processors and 64 GiB; returns what writes a file below the root of the control groups."""
    monkeypatch.setattr(cgroups, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(cgroups, "OWN_CGROUPS", tmp_path / "own")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    memory = psutil.virtual_memory()._replace(available=64 * GIB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)

    def write(name: str, text: str) -> None:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    return write


def test_a_machine_without_control_groups(machine):
    assert (cores(), available_memory()) == (8, 64 * GIB)


def test_a_group_without_limits(machine):
    machine("own", "0::/user.slice\n")
    machine("cgroup/user.slice/cpu.max", "max 100000\n")
    machine("cgroup/user.slice/memory.max", "max\n")
    machine("cgroup/user.slice/memory.current", f"{GIB}\n")
    assert (cores(), available_memory()) == (8, 64 * GIB)


def test_a_container(machine):
    """`docker run --cpus 2.5 --memory 4g`: the group's files lie at the root."""
    machine("own", "0::/\n")
    machine("cgroup/cpu.max", "250000 100000\n")
    machine("cgroup/memory.max", f"{4 * GIB}\n")
    machine("cgroup/memory.current", f"{3 * GIB}\n")
    machine("cgroup/memory.stat", f"anon {GIB}\ninactive_file {2 * GIB}\nactive_file 5\n")
    assert (cores(), available_memory()) == (3, 3 * GIB)


def test_a_limit_of_a_group_above(machine):
    """Slurm sets the limit for the job, while the process is in a group below it."""
    machine("own", "0::/job_7/step_0\n")
    machine("cgroup/job_7/step_0/memory.max", "max\n")
    machine("cgroup/job_7/step_0/memory.current", "5\n")
    machine("cgroup/job_7/memory.max", f"{2 * GIB}\n")
    machine("cgroup/job_7/memory.current", f"{GIB}\n")
    machine("cgroup/job_7/cpu.max", "50000 100000\n")
    assert (cores(), available_memory()) == (1, GIB)


def test_the_older_version(machine):
    """Inside a container the path is the host's, and the root is the container's."""
    machine("own", "4:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n1:name=systemd:/\n")
    machine("cgroup/cpu/cpu.cfs_quota_us", "400000\n")
    machine("cgroup/cpu/cpu.cfs_period_us", "100000\n")
    machine("cgroup/memory/memory.limit_in_bytes", f"{8 * GIB}\n")
    machine("cgroup/memory/memory.usage_in_bytes", f"{9 * GIB}\n")
    machine("cgroup/memory/memory.stat", "total_inactive_file 7\n")
    assert (cores(), available_memory()) == (4, 0)
    machine("cgroup/cpu/cpu.cfs_quota_us", "-1\n")
    assert cores() == 8
