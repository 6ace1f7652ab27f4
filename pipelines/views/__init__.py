"""Views as numbers: distributions (spec), the generator (philox) and the tables drawn from them (draw)."""

from pipelines.views.draw import ViewParams, draw_views
from pipelines.views.spec import IMAGENET_MEAN, IMAGENET_STD, ViewSpec

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "ViewParams", "ViewSpec", "draw_views"]
