"""Whether Triton's kernels can run on the GPU of this machine."""

import os
from functools import cache

import torch


def why_no_triton() -> str | None:
    """Why Triton's kernels can't run here, and what to do; None: they can."""
    if torch.compiler.is_compiling():
        return None  # nothing to look at in a graph; torch.compile makes kernels of Triton, too
    return _start()


@cache
def _start() -> str | None:
    """Start Triton's driver, which is compiled on its first use: Triton's own wheel is not enough for that."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        return None  # kernels run in Python
    try:
        from triton.runtime import driver

        driver.active  # noqa: B018
    except ImportError:
        return "Triton is not installed: pip install triton"
    except Exception as error:  # of a compiler, a linker, the GPU's own driver
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        return (
            f"Triton cannot start ({reason}); it needs a C compiler and Python's headers: "
            "apt-get install gcc python3-dev"
        )
    return None
