"""Views as numbers: distributions (spec), sets of them (groups, presets), the generator (philox), the draws (draw)."""

from pipelines.views.draw import ViewParams, draw_views
from pipelines.views.groups import Group, as_specs, groups_of
from pipelines.views.presets import PRESETS
from pipelines.views.spec import IMAGENET_MEAN, IMAGENET_STD, ViewSpec

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "PRESETS",
    "Group",
    "ViewParams",
    "ViewSpec",
    "as_specs",
    "draw_views",
    "groups_of",
]
