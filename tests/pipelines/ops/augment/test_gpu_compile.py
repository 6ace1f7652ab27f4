"""What the compiler makes of the kernels of the GPU data plane, for GPUs that need not be here.

Sizes that are no multiple of 8 are right but read and write narrowly; the gates hold for those that are.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.triton_support import SHARED_LIMIT, Compiled, compile_for

pytest.importorskip("triton")

TARGETS = pytest.mark.parametrize(("arch", "size"), [(80, 224), (90, 224), (90, 32)])
NORMALISATION = {f"{name}_{channel}": "fp32" for name in ("scale", "shift") for channel in "rgb"}
VIEWS = {"bfloat16": ("*bf16", "*fp16"), "float32": ("*fp32", "*fp32")}
"""Types of views and of the planes between color and blur."""


@pytest.fixture
def log(request: pytest.FixtureRequest, capsys: pytest.CaptureFixture) -> Callable[[Compiled], None]:
    """Prints a kernel's figures past pytest's capture, into the log of CI."""

    def write(compiled: Compiled) -> None:
        with capsys.disabled():
            print(f"\n[{request.node.callspec.id}] {compiled.figures()}", end=" ")

    return write


def check(compiled: Compiled, arch: int, registers: int, load_bits: int, store_bits: int) -> None:
    assert compiled.spills == compiled.stack == 0
    assert compiled.shared <= SHARED_LIMIT[arch] // 2  # two blocks side by side
    assert compiled.registers <= registers
    assert compiled.widest("LDG") >= load_bits
    assert compiled.widest("STG") >= store_bits


def strips(size: int) -> dict[str, Any]:
    from pipelines.ops.augment.gpu import pixel_strips

    runs, count = pixel_strips(size)
    return {"PIXELS": size * size, "STRIPS": count, "RUNS": runs, "WIDE": True}


@TARGETS
def test_gray_sums(arch: int, size: int, log: Callable[[Compiled], None]) -> None:
    from pipelines.ops.augment.gpu_color import gray_sums_kernel

    signature = {"p_crops": "*u8", "p_table": "*fp32", "p_sums": "*fp32", "num_views": "i32"}
    constants = {"p_step": None, **strips(size)}
    compiled = compile_for(gray_sums_kernel, signature, constants, arch, num_warps=constants["RUNS"] // 32)
    log(compiled)
    check(compiled, arch, registers=64, load_bits=64, store_bits=32)


@pytest.mark.parametrize("dtype", VIEWS)
@TARGETS
def test_color(arch: int, size: int, dtype: str, log: Callable[[Compiled], None]) -> None:
    from pipelines.ops.augment.gpu_color import color_kernel

    views, planes = VIEWS[dtype]
    signature = {"p_crops": "*u8", "p_table": "*fp32", "p_step": "*i64", "p_sums": "*fp32", "p_views": views}
    signature |= {"p_planes": planes, "num_views": "i32", **NORMALISATION}
    constants = strips(size)
    constants["STRIPS_POW2"] = 1 << (constants["STRIPS"] - 1).bit_length()
    compiled = compile_for(color_kernel, signature, constants, arch, num_warps=constants["RUNS"] // 32)
    log(compiled)
    # 64 registers let 32 warps live on a multiprocessor, enough to hide the reads
    check(compiled, arch, registers=64, load_bits=64, store_bits=128)


@pytest.mark.parametrize("dtype", VIEWS)
@TARGETS
def test_blur(arch: int, size: int, dtype: str, log: Callable[[Compiled], None]) -> None:
    from pipelines.ops.augment.gpu_blur import blur_kernel, blur_launch

    views, planes = VIEWS[dtype]
    launch = blur_launch(torch.float32 if dtype == "float32" else torch.float16, (arch // 10, 0))
    signature = {"p_planes": planes, "p_table": "*fp32", "p_views": views, "num_views": "i32"}
    signature |= NORMALISATION
    constants = {"p_step": None, "SIZE": size, "RADIUS": size // 20, "ROWS": launch.rows, "WIDE": True}
    options = {"num_warps": launch.num_warps, "num_stages": launch.num_stages}
    compiled = compile_for(blur_kernel, signature, constants, arch, **options)
    log(compiled)
    # float32 is for checking and for small sets, and takes what it needs
    limit = 255 if dtype == "float32" else 200
    check(compiled, arch, registers=limit, load_bits=128, store_bits=64)
    # three channels, two products each: none may be optimised away
    assert compiled.matrix_instructions >= 3 * (4 + 2 + 4)
    if arch == 90 and dtype != "float32":
        assert compiled.count(r"HGMMA\.64x64x16") == 3 * (4 + 2)
        assert compiled.count(r"HGMMA\.64x32x16") == 3 * 4


def test_blur_before_ampere() -> None:
    """For a T4: whatever registers there are, but next to nothing in memory."""
    from pipelines.ops.augment.gpu_blur import blur_kernel, blur_launch

    launch = blur_launch(torch.float16, (7, 5))
    signature = {"p_planes": "*fp16", "p_table": "*fp32", "p_views": "*fp16", "num_views": "i32"}
    constants = {"p_step": None, "SIZE": 224, "RADIUS": 11, "ROWS": launch.rows, "WIDE": True}
    options = {"num_warps": launch.num_warps, "num_stages": launch.num_stages}
    compiled = compile_for(blur_kernel, signature | NORMALISATION, constants, 75, **options)
    assert compiled.stack <= 16


@pytest.mark.parametrize("packed", [False, True])
@TARGETS
def test_crop(arch: int, size: int, packed: bool, log: Callable[[Compiled], None]) -> None:
    from pipelines.ops.crop.gpu import crop_kernel, row_strips

    pointers = {"set": "u8", "indices": "i64", "boxes": "i32", "flips": "u8", "step": "i64", "out": "u8"}
    signature = {f"p_{name}": f"*{kind}" for name, kind in pointers.items()}
    signature |= dict.fromkeys(("num_images", "num_views", "uniform_bytes", "uniform_width"), "i32")
    runs, count = row_strips(size)
    constants: dict[str, Any] = {"SIZE": size, "STRIPS": count, "RUNS": runs, "WIDE": True}
    if packed:
        signature |= {"p_offsets": "*i64", "p_widths": "*i32"}
    else:
        constants |= {"p_offsets": None, "p_widths": None}
    compiled = compile_for(crop_kernel, signature, constants, arch, num_warps=runs // 32)
    log(compiled)
    # pixels are read byte by byte, for a box starts anywhere: the wide load is the one of an index
    check(compiled, arch, registers=168, load_bits=64, store_bits=64)
