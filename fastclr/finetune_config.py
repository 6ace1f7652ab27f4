"""FinetuneConfig: the settings of `fastclr finetune`, which a recipe of its own kind fills."""

from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar

import tyro

from fastclr.config import MAX_SIZE, Config, LossConfig, ModelConfig
from fastclr.schedule import Scheduled
from pipelines.views import ViewSpec

_OF_THE_RUN = (tyro.conf.Fixed, tyro.conf.Suppress)


@dataclass(frozen=True)
class FinetuneSettings:
    """What is trained, on which labels."""

    fraction: float = 1.0
    """Fraction of the labelled images, the same number of each class: 0.01 and 0.1 in the papers."""
    subset_seed: int = 0
    """Seed of the choice of these images."""
    from_layer: int = 0
    """Layers of the projection head that are kept: 0 trains a classifier on h, 1 is SimCLR v2's choice."""
    head_only: bool = False
    """Train the linear classifier alone; the encoder stays as it is."""
    from_scratch: bool = False
    """Start from fresh weights: supervised training of the same network, for comparison."""
    size: int | None = None
    """Height and width of a view in pixels; None: the size in the encoder's file."""

    def __post_init__(self) -> None:
        checks = {
            "fraction": (0 < self.fraction <= 1, "above 0, and at most 1"),
            "subset_seed": (0 <= self.subset_seed < 2**64, "0 to 2⁶⁴ − 1"),
            "from_layer": (self.from_layer >= 0, "0 or more"),
            "size": (self.size is None or 1 <= self.size <= MAX_SIZE, f"1 to {MAX_SIZE}, or left out"),
        }
        for name, (holds, what) in checks.items():
            if not holds:
                raise ValueError(f"finetune.{name} is {getattr(self, name)!r}; it must be {what}")
        if self.head_only and self.from_scratch:
            raise ValueError(
                "finetune.head_only on fresh weights would train on random features; leave one out"
            )


@dataclass(frozen=True)
class FinetuneConfig(Config):
    """All settings of fine-tuning, except the files and folders.

    The model is that of the run, and a view is a random crop and flip of its size, mean and std (Chen et al. 2020,
    appendix B.5); `[model]` and `[views]` are filled in from the run.
    """

    RECIPE_SECTIONS: ClassVar[tuple[str, ...]] = ("data", "finetune", "optim", "train")

    views: Annotated[ViewSpec | tuple[ViewSpec, ...], *_OF_THE_RUN] = field(
        default_factory=lambda: ViewSpec.crop_flip(224)
    )
    model: Annotated[ModelConfig, *_OF_THE_RUN] = field(default_factory=ModelConfig)
    loss: Annotated[LossConfig, *_OF_THE_RUN] = field(default_factory=LossConfig)
    schedule: Annotated[tuple[Scheduled, ...], *_OF_THE_RUN] = ()
    finetune: FinetuneSettings = field(default_factory=FinetuneSettings)

    def with_model_of(self, meta: dict[str, Any]) -> "FinetuneConfig":
        """Return the config with model and views filled in from the metadata of an encoder (`load_encoder`)."""
        size = self.finetune.size or meta["size"]
        views = ViewSpec.crop_flip(size, mean=tuple(meta["mean"]), std=tuple(meta["std"]))
        kwargs = meta["kwargs"] if meta["encoder"] == "resnet" else {}
        return replace(self, views=views, model=ModelConfig(encoder=meta["encoder"], **kwargs))
