"""The views of published methods, each as a tuple of ViewSpecs.

    loader = ViewLoader(file, 256, views=presets.dino())

A preset has the numbers of its source.  Some details are the same for all presets, and may differ from a source: crops
are resized bilinearly with antialiasing (the authors of BYOL, Barlow Twins, VICReg and DINO resize bicubically), the
operations are torchvision's (BYOL's authors add to the brightness, torchvision multiplies), the blur has ⌊size/10⌋ taps
made odd, and mean and std are ImageNet's.  `changes` are fields of ViewSpec that replace those of every spec:
`presets.byol(mean=…, std=…)`.
"""

from collections.abc import Callable
from typing import Any

from pipelines.views.spec import ViewSpec

Views = tuple[ViewSpec, ...]
BYOL_JITTER = (0.4, 0.4, 0.2, 0.1)
"""Ranges of brightness, contrast, saturation and hue in BYOL, and in methods with the same augmentation."""


def simclr(size: int = 224, **changes: Any) -> Views:
    """SimCLR: two views of one distribution; jitter of half the strength and no blur at 32 pixels or less.

    Source: arXiv 2002.05709, appendices A and B.9.
    """
    return (ViewSpec.simclr(size, **changes),)


def moco_v2(size: int = 224, **changes: Any) -> Views:
    """MoCo v2: SimCLR's operations with larger crops and weaker jitter.

    Source: arXiv 2003.04297, section 3; `--aug-plus` of `main_moco.py` in the authors' code (facebookresearch/moco).
    """
    return (ViewSpec(**{"size": size, "scale": (0.2, 1.0), "jitter": (0.4, 0.4, 0.4, 0.1), **changes}),)


def simsiam(size: int = 224, **changes: Any) -> Views:
    """SimSiam: the augmentation of MoCo v2.

    Source: arXiv 2011.10566, appendix A; `main_simsiam.py` in the authors' code (facebookresearch/simsiam).
    """
    return moco_v2(size, **changes)


def byol(size: int = 224, **changes: Any) -> Views:
    """BYOL: the first view is always blurred; the second rarely, but one in five is solarized.

    Source: arXiv 2006.07733, appendix B; `byol/utils/augmentations.py` in the authors' code
    (google-deepmind/deepmind-research).

    >>> [(spec.blur_p, spec.solarize_p) for spec in byol()]
    [(1.0, 0.0), (0.1, 0.2)]
    """
    common: dict[str, Any] = {"size": size, "num_views": 1, "jitter": BYOL_JITTER}
    return (
        ViewSpec(**{**common, "blur_p": 1.0, **changes}),
        ViewSpec(**{**common, "blur_p": 0.1, "solarize_p": 0.2, **changes}),
    )


def barlow_twins(size: int = 224, **changes: Any) -> Views:
    """Barlow Twins: the augmentation of BYOL.

    Source: arXiv 2103.03230, section 2.2; `Transform` of `main.py` in the authors' code
    (facebookresearch/barlowtwins).
    """
    return byol(size, **changes)


def vicreg(size: int = 224, **changes: Any) -> Views:
    """VICReg: the augmentation of BYOL.

    Source: `augmentations.py` in the authors' code (facebookresearch/vicreg) for arXiv 2105.04906.
    """
    return byol(size, **changes)


def swav(size: int = 224, local_size: int = 96, num_local_views: int = 6, **changes: Any) -> Views:
    """SwAV: two large crops and six small ones, whose ranges of scale do not overlap, under SimCLR's augmentation.

    Source: arXiv 2006.09882, appendix A; `src/multicropdataset.py` and `scripts/swav_800ep_pretrain.sh` in the
    authors' code (facebookresearch/swav).

    >>> [(spec.num_views, spec.size, spec.scale) for spec in swav()]
    [(2, 224, (0.14, 1.0)), (6, 96, (0.05, 0.14))]
    """
    return (
        ViewSpec(**{"size": size, "scale": (0.14, 1.0), **changes}),
        ViewSpec(**{"size": local_size, "scale": (0.05, 0.14), "num_views": num_local_views, **changes}),
    )


def dino(size: int = 224, local_size: int = 96, num_local_views: int = 8, **changes: Any) -> Views:
    """DINO: BYOL's two views as global crops, and eight local crops that are blurred half of the time.

    Source: arXiv 2104.14294, section 3.2; `main_dino.py` in the authors' code (facebookresearch/dino), with its
    defaults: scales of 0.4 to 1 and 0.05 to 0.4, eight local crops.

    >>> [(spec.num_views, spec.size, spec.blur_p) for spec in dino()]
    [(1, 224, 1.0), (1, 224, 0.1), (8, 96, 0.5)]
    """
    local: dict[str, Any] = {"size": local_size, "num_views": num_local_views, "jitter": BYOL_JITTER}
    return (
        *byol(size, **{"scale": (0.4, 1.0), **changes}),
        ViewSpec(**{**local, "scale": (0.05, 0.4), "blur_p": 0.5, **changes}),
    )


PRESETS: dict[str, Callable[..., Views]] = {
    "simclr": simclr,
    "moco_v2": moco_v2,
    "simsiam": simsiam,
    "byol": byol,
    "barlow_twins": barlow_twins,
    "vicreg": vicreg,
    "swav": swav,
    "dino": dino,
}
"""Presets by name."""
