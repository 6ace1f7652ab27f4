"""Whether Triton's kernels can run on the GPU of this machine."""

import os
from functools import cache

import torch


def why_no_triton() -> str | None:
    """Return why Triton's kernels can't run here and what to do, or None if they can."""
    if torch.compiler.is_compiling():
        return None  # the check can't be traced into a graph; torch.compile uses Triton itself
    return _start()


@cache
def _start() -> str | None:
    """Start Triton's driver, which is compiled on its first use and needs more than Triton's wheel."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        return None  # the interpreter runs the kernels in Python
    try:
        from triton.runtime import driver

        driver.active  # noqa: B018
    except ImportError:
        return "Triton is not installed: pip install triton"
    except Exception as error:  # errors of a compiler, a linker, or the GPU's driver
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        return (
            f"Triton cannot start ({reason}); it needs a C compiler and Python's headers: "
            "apt-get install gcc python3-dev"
        )
    return None
