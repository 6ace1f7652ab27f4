"""Testing Triton kernels without a GPU: in its interpreter, and by compiling them for GPUs that are not here.

`interpreted(function, …)` runs a test's body in a second process where TRITON_INTERPRET=1 was set before
Triton was imported, so that the kernels run as numpy on CPU tensors and the test process stays as it is.
Mind its limits: float32 → bfloat16 truncates there, a bfloat16 `tl.dot` is wrong, and races, shared memory
and registers are not modelled.

`compile_for(kernel, …, arch)` needs no driver and gives what the compiler would have put on the GPU:
registers, spills, shared memory, and the machine code to count instructions in.
"""

import atexit
import contextlib
import importlib.util
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any
from unittest import mock

import pytest
import torch

SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024}
"""Shared memory that one block may have, bytes (CUDA C++ programming guide, table of compute capabilities)."""

_worker: ProcessPoolExecutor | None = None


def interpreted(function: Callable[..., Any], *args: Any, timeout_s: float = 120) -> Any:
    """`function(*args)` in Triton's interpreter.

    The function must be at the top level of its file, and whatever imports Triton must be imported inside it;
    arguments and result are pickled.  Its exceptions, AssertionError among them, are raised here.
    """
    global _worker
    if _worker is None:
        context = multiprocessing.get_context("spawn")
        _worker = ProcessPoolExecutor(1, mp_context=context, initializer=start_interpreter)
        atexit.register(_worker.shutdown, wait=False, cancel_futures=True)
    return _worker.submit(_call, function.__code__.co_filename, function.__name__, args).result(timeout_s)


def on_gpu(test: Callable) -> Callable:
    """Marks a test `gpu`, and skips it where there is no CUDA device."""
    missing = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
    return pytest.mark.gpu(missing(test))


@contextlib.contextmanager
def poisoned_empty() -> Iterator[None]:
    """`torch.empty` gives NaN (integers: 171), so that whatever a kernel does not write shows."""
    empty = torch.empty

    def poisoned(*args: Any, **options: Any) -> torch.Tensor:
        tensor = empty(*args, **options)
        return tensor.fill_(float("nan") if tensor.is_floating_point() else 171)

    with mock.patch("torch.empty", poisoned):
        yield


def start_interpreter() -> None:
    """For a process of one's own, before it imports a kernel."""
    os.environ["TRITON_INTERPRET"] = "1"
    torch.set_num_threads(1)
    import triton

    if tuple(int(part) for part in triton.__version__.split(".")[:2]) < (3, 9):
        _let_loops_have_loaded_bounds()


def _let_loops_have_loaded_bounds() -> None:
    """`for i in range(loaded number)`: Triton 3.6 takes int() of an array of one, which numpy ≥ 2.4 refuses.

    To be dropped with the last Triton that does so.
    """
    from triton.runtime import interpreter

    patch_tensor = interpreter._patch_lang_tensor

    def patch_tensor_and_index(tensor: Any, *scope: Any) -> None:
        patch_tensor(tensor, *scope)
        # Triton 3.4 (torch 2.8) has no scope that would undo its changes
        set_attr = scope[0].set_attr if scope else setattr
        set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patch_tensor_and_index


def _call(file: str, name: str, args: tuple) -> Any:
    module_name = f"interpreted:{file}"
    if module_name not in sys.modules:
        spec = importlib.util.spec_from_file_location(module_name, file)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module
        spec.loader.exec_module(module)
    return getattr(sys.modules[module_name], name)(*args)


@dataclass(frozen=True)
class Compiled:
    """A kernel as it would be loaded on a GPU."""

    name: str
    asm: Mapping[str, Any]
    """Triton's stages by name: "ttgir", "ptx", … """
    sass: str
    """Machine code, one instruction a line."""
    registers: int
    """Per thread."""
    stack: int
    """Bytes of local memory per thread: register spills and arrays with a run-time index."""
    shared: int
    """Bytes per block."""

    def count(self, opcode: str) -> int:
        """Instructions whose opcode, with its suffixes, matches the regular expression, e.g. r"HMMA"."""
        return sum(bool(re.match(opcode, word)) for word in self.opcodes())

    def opcodes(self) -> list[str]:
        """Opcode of every instruction up to the padding behind the kernel's end, predicates left out."""
        words = re.findall(r";?\s(?:@!?U?P\w+ )?([A-Z][A-Z0-9]+(?:\.[A-Za-z0-9_]+)*)\b[^;\n]*;", self.sass)
        return [word for word in words if word != "NOP"]

    @property
    def matrix_instructions(self) -> int:
        """Tensor-core instructions (HMMA: one warp; HGMMA: Hopper's four warps)."""
        return self.count("HMMA|HGMMA")

    @property
    def spills(self) -> int:
        """Loads and stores of local memory."""
        return self.count("LDL|STL")

    def widest(self, opcode: str) -> int:
        """Bits of the widest access, e.g. of "LDG" (global loads, those that go straight to shared memory
        among them) or "STG"; 0 where there is none."""
        family = {"LDG": "LDG|LDGSTS"}.get(opcode, opcode)
        found = [word for word in self.opcodes() if re.match(rf"({family})\b", word)]
        return max((_access_bits(word) for word in found), default=0)

    def figures(self) -> str:
        """One line for the log."""
        return (
            f"{self.name}: {self.registers} registers, {self.stack} B stack, {self.shared} B shared, "
            f"{len(self.opcodes())} instructions, {self.matrix_instructions} matrix, "
            f"widest load {self.widest('LDG')} bit, widest store {self.widest('STG')} bit"
        )


def _access_bits(opcode: str) -> int:
    for suffix, bits in ((".128", 128), (".64", 64), (".U8", 8), (".S8", 8), (".U16", 16), (".S16", 16)):
        if suffix in opcode:
            return bits
    return 32


def compile_for(
    kernel: Any,
    signature: Mapping[str, str],
    constexprs: Mapping[str, Any],
    arch: int,
    **options: Any,
) -> Compiled:
    """Compile a `@triton.jit` kernel for a GPU that need not be here.

    Args:
        kernel: the jitted function.
        signature: type of each argument that is no constexpr: "*fp16", "*u8", "i32", "fp32", …; a pointer is
            taken to be 16-byte aligned, as every torch allocation is, unless its type ends in "!".
        constexprs: value of each constexpr argument.
        arch: compute capability, 80 or 90.
        options: num_warps, num_stages, enable_fp_fusion, … as at a launch.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    types = {name: signature.get(name, "constexpr").rstrip("!") for name in kernel.arg_names}
    aligned = {
        (position,): [["tt.divisibility", 16]]
        for position, name in enumerate(kernel.arg_names)
        if signature.get(name, "").startswith("*") and not signature[name].endswith("!")
    }
    source = ASTSource(kernel, types, dict(constexprs), aligned)
    result = triton.compile(
        source, target=GPUTarget("cuda", arch, 32), options={"enable_fp_fusion": True, **options}
    )
    usage = _tool("cuobjdump", "-res-usage", result.asm["cubin"])
    sass = _tool("cuobjdump", "-sass", result.asm["cubin"])

    def resource(name: str) -> int:
        found = re.search(rf"\b{name}:(\d+)", usage)
        assert found, usage
        return int(found[1])

    return Compiled(
        name=f"{result.metadata.name} sm_{arch}",
        asm=result.asm,
        sass=sass,
        registers=resource("REG"),
        stack=resource("STACK") + resource("LOCAL"),
        shared=result.metadata.shared,
    )


def _tool(name: str, option: str, cubin: bytes) -> str:
    """Output of a CUDA binary tool that Triton's wheel carries."""
    import triton

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [getattr(triton.knobs.nvidia, name).path, option, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
