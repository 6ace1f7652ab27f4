"""Engines decode, crop and flip.  All take the same plans and give the same crops.

Each is made as `ENGINES[name](reader, planner, num_threads=…, device=…, augment=…)` and has `run(plans, planner)` and
`close()`.  An engine's module is imported when the engine is first made: the names alone need no torch, whose import
takes seconds.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from pipelines.contracts import Engine

EngineName = Literal["native", "resident", "ffcv", "dali", "torchvision"]


@dataclass(frozen=True)
class EngineClass:
    """A class of engines, imported when it is first called."""

    module: str
    name: str

    def __call__(self, *arguments: Any, **options: Any) -> "Engine":
        return getattr(importlib.import_module(self.module), self.name)(*arguments, **options)


_RESIDENT = EngineClass("pipelines.engines.resident.host", "ResidentEngine")
_RESIDENT_GPU = EngineClass("pipelines.engines.resident.gpu", "ResidentGpuEngine")


def _resident(*arguments: Any, device: Any = "cpu", **options: Any) -> "Engine":
    """Make the engine that keeps the set in the memory of `device`, or in the host's where Triton can't run."""
    import torch

    from pipelines.system.triton import why_no_triton

    on_host = torch.device(device).type == "cpu" or why_no_triton() is not None
    return (_RESIDENT if on_host else _RESIDENT_GPU)(*arguments, device=device, **options)


ENGINES: dict[EngineName, Callable[..., "Engine"]] = {
    "native": EngineClass("pipelines.engines.native.engine", "NativeEngine"),
    "resident": _resident,
    "ffcv": EngineClass("pipelines.engines.ffcv.engine", "FfcvEngine"),
    "dali": EngineClass("pipelines.engines.dali", "DaliEngine"),
    "torchvision": EngineClass("pipelines.engines.torchvision", "TorchvisionEngine"),
}
