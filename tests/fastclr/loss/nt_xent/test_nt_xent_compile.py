"""The NT-Xent kernels compiled for GPUs: matrix instructions, no spills, shared memory, wide loads."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton")

from support.triton_launches import launches_for
from support.triton_support import SHARED_LIMIT, Compiled

from fastclr.loss.nt_xent import fused
from fastclr.loss.nt_xent.tiles import choose_tiles

SMALLEST_SHARED = 99 * 1024
"""Shared memory per multiprocessor of compute capability 8.6, 8.9 and 12.0, which use the tiles of 8.0."""
REGISTERS = 64 * 1024
"""Registers of a multiprocessor."""

WIDTHS = [
    20,  # padded, to 32
    128,  # the paper's
    256,
    512,  # the widest: most registers and shared memory
]


def step(width: int) -> None:
    h = torch.zeros(2 * 70, width, requires_grad=True)
    torch.ops.fastclr.nt_xent(h, 0.1, "group")[0].backward()


@pytest.fixture(params=[80, 90], ids=["sm_80", "sm_90"])
def arch(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(fused, "INTERPRETED", True)  # or tensors on the CPU were refused
    monkeypatch.setattr(fused, "gpu_facts", lambda device: ((request.param // 10, 0), 132))
    monkeypatch.setattr(fused, "_group", lambda name: None)
    return request.param


@pytest.fixture
def log(capsys: pytest.CaptureFixture) -> Callable[[Compiled], None]:
    """Figures of a kernel, also into the log of a run that captures output."""

    def write(launch: Compiled) -> None:
        with capsys.disabled():
            print(f"\n  {launch.figures()}", end="")

    return write


def check_large(launch: Compiled, arch: int, num_warps: int, programs: int) -> None:
    assert launch.count("HGMMA" if arch == 90 else "HMMA") > 0
    assert launch.widest("LDG") == 128
    assert launch.spills == 0
    assert launch.stack == 0
    assert launch.shared <= (SHARED_LIMIT[90] if arch == 90 else SMALLEST_SHARED)
    # as many at once as `tiles.py` says
    assert programs * launch.registers * 32 * num_warps <= REGISTERS
    assert programs * launch.shared <= SHARED_LIMIT[arch]


@pytest.mark.parametrize("width", WIDTHS)
def test_kernels_of_one_rank(arch: int, width: int, log: Callable[[Compiled], None]) -> None:
    launches = launches_for(step, width, arch=arch)
    for launch in launches:
        log(launch)
        assert launch.spills == 0
        assert launch.stack == 0
    assert [launch.name.split()[0] for launch in launches] == [
        "normalize_kernel",
        "row_sums_kernel",
        "row_losses_kernel",
        "dz_kernel",
        "dh_kernel",
    ]
    forward, backward = choose_tiles(max(32, width), (arch // 10, 0))
    check_large(launches[1], arch, forward.num_warps, forward.programs)
    check_large(launches[3], arch, backward.num_warps, backward.programs)
    assert launches[0].widest("LDG") == 128  # normalize: rows of h
    assert launches[4].widest("LDG") == 128  # dh: partial sums
    assert launches[4].widest("STG") == 128


def test_row_sums_of_one_rank_among_many(
    arch: int, monkeypatch: pytest.MonkeyPatch, log: Callable[[Compiled], None]
) -> None:
    """Without the symmetry of the whole matrix it is another kernel."""
    monkeypatch.setattr(fused, "_group", lambda name: SimpleNamespace(rank=lambda: 3, size=lambda: 8))
    monkeypatch.setattr(fused, "_gather", lambda rows, own_rows, group: None)
    row_sums = launches_for(step, 128, arch=arch)[1]
    log(row_sums)
    forward, _ = choose_tiles(128, (arch // 10, 0))
    check_large(row_sums, arch, forward.num_warps, forward.programs)
