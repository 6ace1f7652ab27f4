"""The data plane: from bytes on disk to augmented views.  Knows nothing of training."""

from pipelines.batch import Batch, EngineUnavailable
from pipelines.beton import BetonReader
from pipelines.loader import TwoViewLoader
from pipelines.views import ViewParams, ViewSpec, draw_views

__all__ = [
    "Batch",
    "BetonReader",
    "EngineUnavailable",
    "TwoViewLoader",
    "ViewParams",
    "ViewSpec",
    "draw_views",
]
