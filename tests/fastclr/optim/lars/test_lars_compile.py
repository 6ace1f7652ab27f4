"""The LARS kernels as a GPU would get them: 16-byte accesses, no spills, registers few enough to hide latency."""

import pytest
import torch

pytest.importorskip("triton")

from support.triton_launches import launches_for

from fastclr.optim.lars import fused

REGISTERS = 64 * 1024
"""Registers of a multiprocessor."""


def step(form: str, lr: float | torch.Tensor) -> None:
    params, grads, buffers = ([torch.zeros(100, 100), torch.zeros(64)] for _ in range(3))
    fused.fused_step(
        params,
        grads,
        buffers,
        lr=lr,
        momentum=0.9,
        weight_decay=[1e-4, 0.0],
        trust_coefficient=1e-3,
        adapt=[True, False],
        form=form,
    )


@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize(
    ("form", "lr"), [("authors", 0.1), ("authors", torch.tensor(0.1)), ("popular", 0.1), ("port", 0.1)]
)
def test_kernels(
    form: str,
    lr: float | torch.Tensor,
    arch: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.setattr(fused, "INTERPRETED", True)  # or tensors on the CPU were refused
    norms, update = launches_for(step, form, lr, arch=arch)
    assert norms.name.startswith("norms_kernel")
    assert update.name.startswith("update_kernel")
    for launch in (norms, update):
        with capsys.disabled():
            print(f"\n  {launch.figures()}", end="")
        assert launch.spills == 0
        assert launch.stack == 0
        # without the promise that 16 divides the table's addresses, no access is wider than 32 bits
        assert launch.count(r"LDG\S*\.128") >= 4
        # three quarters of the 64 warps that a multiprocessor holds: enough loads in flight
        assert launch.registers * 32 * 48 <= REGISTERS * 1.25
    assert update.count(r"STG\S*\.128") >= 4
