"""Views as numbers: distributions (spec), sets of them (groups), the generator (philox) and the drawn tables (draw)."""

from pipelines.views.draw import ViewParams, draw_views
from pipelines.views.groups import Group, as_specs, groups_of
from pipelines.views.spec import IMAGENET_MEAN, IMAGENET_STD, ViewSpec

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "Group",
    "ViewParams",
    "ViewSpec",
    "as_specs",
    "draw_views",
    "groups_of",
]
