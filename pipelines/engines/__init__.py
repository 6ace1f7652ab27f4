"""Engines: who decodes, crops and flips.  All take the same plans and give the same crops.

Each is made as `ENGINES[name](reader, sampler, num_threads=…, device=…)` and has `run(plans)` and `close()`.
"""

from collections.abc import Callable

from pipelines.contracts import Engine
from pipelines.engines.dali import DaliEngine
from pipelines.engines.ffcv.engine import FfcvEngine
from pipelines.engines.native.engine import NativeEngine
from pipelines.engines.resident.host import resident
from pipelines.engines.torchvision import TorchvisionEngine

ENGINES: dict[str, Callable[..., Engine]] = {
    "native": NativeEngine,
    "resident": resident,
    "ffcv": FfcvEngine,
    "dali": DaliEngine,
    "torchvision": TorchvisionEngine,
}
