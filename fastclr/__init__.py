"""SimCLR pre-training that runs at the speed of its data loading.

The public names are imported when they are first used, so that `import fastclr` takes no time and needs no torch.
"""

import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from fastclr.loss import nt_xent as nt_xent
    from fastclr.model import SimCLR as SimCLR
    from fastclr.optim import LARS as LARS
    from fastclr.train.checkpoint import load_encoder as load_encoder
    from pipelines import BetonReader as BetonReader
    from pipelines import TwoViewLoader as TwoViewLoader
    from pipelines import ViewLoader as ViewLoader
    from pipelines import ViewSpec as ViewSpec


def _check_own(package: str) -> None:
    """Check that `import package` finds the package that is installed beside this one.

    Raises:
        ImportError: another package hides it, such as a folder beside the user's script.
    """
    root = Path(__file__).resolve().parent.parent
    loaded = sys.modules.get(package)
    spec = loaded.__spec__ if loaded is not None else importlib.util.find_spec(package)
    if spec is None:
        raise ImportError(
            f"fastclr needs its package {package!r}, which is missing beside it: install it again"
        )
    found = [Path(place).resolve() for place in spec.submodule_search_locations or [spec.origin or "?"]]
    if root / package not in found:
        raise ImportError(
            f"fastclr needs its own package {package!r} (in {root}), but {found[0]} hides it: rename that, "
            "or run Python with -P (or PYTHONSAFEPATH=1) so that the script's own folder is not searched"
        )


for _package in ("pipelines", "benchmarks"):
    _check_own(_package)

# after the check, which gives a helpful error if `pipelines` is another package
from pipelines.system.lazy import lazy_names  # noqa: E402

_HOMES = {
    "BetonReader": "pipelines",
    "LARS": "fastclr.optim",
    "SimCLR": "fastclr.model",
    "TwoViewLoader": "pipelines",
    "ViewLoader": "pipelines",
    "ViewSpec": "pipelines",
    "load_encoder": "fastclr.train.checkpoint",
    "nt_xent": "fastclr.loss",
}

__all__ = list(_HOMES)
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
