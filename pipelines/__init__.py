"""The data plane: from bytes on disk to augmented views.  Knows nothing of training.

Names are imported when they are first used: reading and converting files needs no torch, whose import takes
seconds.
"""

from typing import TYPE_CHECKING

from pipelines.system.lazy import lazy_names

if TYPE_CHECKING:
    from pipelines.beton import BetonReader as BetonReader
    from pipelines.beton import BetonWriter as BetonWriter
    from pipelines.contracts import Batch as Batch
    from pipelines.errors import EngineUnavailable as EngineUnavailable
    from pipelines.loader import TwoViewLoader as TwoViewLoader
    from pipelines.loader import ViewLoader as ViewLoader
    from pipelines.views import ViewParams as ViewParams
    from pipelines.views import ViewSpec as ViewSpec
    from pipelines.views import draw_views as draw_views

_HOMES = {
    "Batch": "pipelines.contracts",
    "BetonReader": "pipelines.beton",
    "BetonWriter": "pipelines.beton",
    "EngineUnavailable": "pipelines.errors",
    "TwoViewLoader": "pipelines.loader",
    "ViewLoader": "pipelines.loader",
    "ViewParams": "pipelines.views",
    "ViewSpec": "pipelines.views",
    "draw_views": "pipelines.views",
}

__all__ = list(_HOMES)
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
