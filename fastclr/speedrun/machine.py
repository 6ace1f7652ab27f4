"""The machine of a speedrun: its class, its description for the log, and the environment of its processes."""

import hashlib
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

import torch

from fastclr.device import has_bfloat16
from pipelines.system.versions import vector_extension

CPU_CLASSES = ("cpu-avx512-bf16", "cpu-avx2")
ONE_THREAD = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
DESCRIBE_TIMEOUT_S = 30
PACKAGES = ("fastclr", "pipelines")
"""Packages whose source decides what a run computes."""


def machine_class(gpus: int) -> str:
    """Return the class that records are compared in: the instruction set of a CPU, or number and name of the GPUs.

    A CPU with AVX-512 but without bfloat16 is in the class of AVX2.  One with AMX is in that of AVX-512 with bfloat16,
    and `process_environment` keeps oneDNN from using AMX.

    Raises:
        ValueError: the machine has fewer GPUs than that, or neither of the instruction sets.
    """
    if gpus:
        found = torch.cuda.device_count()
        if found < gpus:
            raise ValueError(
                f"the rung needs {gpus} GPU{'' if gpus == 1 else 's'}, and torch sees {found} here; "
                "--dry-run needs none"
            )
        return f"{gpus}x {torch.cuda.get_device_name(0)}"
    if has_bfloat16(torch.device("cpu")):
        return CPU_CLASSES[0]
    if vector_extension():
        return CPU_CLASSES[1]
    raise ValueError(
        f"this processor has no AVX2, and is in none of the classes {', '.join(CPU_CLASSES)}; run the rung on another"
    )


def process_environment(class_name: str) -> dict[str, str]:
    """Return the environment of a seed's process: on a CPU one thread, and no wider instructions than its class."""
    if class_name not in CPU_CLASSES:
        return dict(os.environ)
    isa = {"cpu-avx512-bf16": "AVX512_CORE_BF16", "cpu-avx2": "AVX512_CORE"}[class_name]
    return {**os.environ, **dict.fromkeys(ONE_THREAD, "1"), "ONEDNN_MAX_CPU_ISA": isa}


def describe(gpus: int) -> Mapping[str, str]:
    """Return the output of lscpu and, for a GPU rung, nvidia-smi; "not found" without them."""
    commands = {"lscpu": ["lscpu"], **({"nvidia-smi": ["nvidia-smi"]} if gpus else {})}
    return {name: _output(command) for name, command in commands.items()}


def _output(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=DESCRIBE_TIMEOUT_S)
        return done.stdout
    except (OSError, subprocess.SubprocessError):
        return "not found"


def source_digest() -> str:
    """Return a hash of the Python files of `fastclr` and `pipelines`: seeds are comparable only if it is the same."""
    root, digest = Path(__file__).parents[2], hashlib.sha256()
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            digest.update(f"{path.relative_to(root).as_posix()}\0".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def uncommitted_changes() -> str:
    """Return the difference of both packages from the commit of their checkout; empty if there is none, or no git."""
    root = Path(__file__).parents[2]
    return _output(["git", "-C", str(root), "diff", "HEAD", "--", *PACKAGES]).removesuffix("not found")
