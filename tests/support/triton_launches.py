"""What a function would launch on a GPU that is not here: the kernels, compiled as they would be, in order.

`compile_for` needs a kernel's types and constants said once more; here they are those of the launch itself, so
that a test cannot look at another configuration than the one that runs.
"""

from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from support.triton_support import Compiled, compile_for

POINTERS = {
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float32: "*fp32",
    torch.int32: "*i32",
    torch.int64: "*i64",
}


def launches_for(function: Callable[..., Any], *args: Any, arch: int) -> list[Compiled]:
    """Every launch of `function(*args)`, compiled for a GPU of compute capability `arch` instead of run.

    Tensors may be on the CPU; what the kernels would have written stays as it is.
    """
    from triton import JITFunction

    launches = []

    def compile_instead(kernel: Any, *positional: Any, grid: Any, warmup: bool, **keywords: Any) -> None:
        values = {**dict(zip(kernel.arg_names, positional, strict=False)), **keywords}
        constexprs = {p.name: values[p.name] for p in kernel.params if p.is_constexpr}
        types = {name: _type_of(values[name]) for name in kernel.arg_names if name not in constexprs}
        options = {name: value for name, value in values.items() if name not in kernel.arg_names}
        launches.append(compile_for(kernel, types, constexprs, arch, **options))

    with mock.patch.object(JITFunction, "run", compile_instead):
        function(*args)
    return launches


def _type_of(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return POINTERS[value.dtype]
    return {int: "i32", float: "fp32"}[type(value)]
