"""Config: everything that decides what a training run computes, as dataclasses that a TOML recipe fills.

Commands and `fastclr.train` read it; model, loss, optimizer and evaluation take plain keyword values.  The section
`views` is `pipelines.ViewSpec` itself, or several of them.
"""

import dataclasses
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

import tyro

from fastclr.schedule import Scheduled, changed, check_schedule, views_at
from pipelines.engines import EngineName
from pipelines.system.renamed import accept_old_fields
from pipelines.views import ViewSpec, as_specs

MAX_WHOLE_NUMBER = 2**64 - 1
"""Maximum of a whole number among the settings: the largest seed."""

MAX_SIZE = 4096
"""Maximum side length of an image in pixels, that of a ViewSpec."""

RESNET_SETTINGS = ("depth", "width", "stem", "sk_ratio", "stages")
"""Settings of `[model]` that only the encoder `resnet` has."""


class IgnoredSetting(UserWarning):
    """A setting was given that another one makes ineffective."""


def _check(condition: bool, name: str, value: object, what: str) -> None:
    if not condition:
        raise ValueError(f"{name} is {value!r}; it must be {what}")


@dataclass(frozen=True)
class DataConfig:
    """How the file is read."""

    engine: Literal["auto", EngineName] = "auto"
    """Engine that decodes and crops; auto: resident where the decoded images take at most 1 GiB, else native."""
    order: Literal["random", "sequential", "blocks"] = "random"
    """Order of the samples in an epoch; blocks is for files larger than memory."""
    threads: int | None = None
    """Threads of the loader; None: one when training on the CPU, else one per core."""
    image_field: str | None = None
    """Name of the file's image field; None: the one named image, or else the first of the kind."""
    label_field: str | None = None
    """Name of the file's label field; None: the one named label, or else the first of whole numbers."""

    def __post_init__(self) -> None:
        _check(
            self.threads is None or self.threads >= 1, "data.threads", self.threads, "at least 1, or left out"
        )


@dataclass(frozen=True)
class ModelConfig:
    """Encoder and projection head."""

    encoder: str = "resnet"
    """resnet, with the depth, width and stem below; or torchvision:NAME or timm:NAME, a model of these packages."""
    depth: int = 50
    """Layers of the ResNet: 18, 34, 50, 101 or 152; 10 is a small one for CPUs."""
    width: float = 1.0
    """Multiplier of the channels: 1, 2 or 4 in the paper, less for CPUs."""
    stem: Literal["auto", "imagenet", "cifar", "stride2", "whitened"] = "auto"
    """First layers; auto: cifar (3×3, stride 1, no pool) up to 32 px; stride2: that with stride 2, for CPUs; whitened:
    4×4, stride 2, not trained but computed from patches of the images, for short runs."""
    sk_ratio: float = 0.0
    """Ratio of SimCLR v2's selective kernels, 0.0625 there, for depth 50 and more; 0: none."""
    stages: Literal[3, 4] = 4
    """Stages of the ResNet: 4, or 3 for small images, where the maps of the last would be 2×2."""
    head: Literal["none", "linear", "nonlinear"] = "nonlinear"
    """Projection head."""
    head_layers: int = 3
    """Layers of a nonlinear head: 2 in SimCLR, 3 in SimCLR v2 and the released code."""
    proj_hidden_dim: int | None = None
    """Outputs of its hidden layers; None: as many as the encoder has features."""
    proj_dim: int = 128
    """Dimension D of the projection z."""

    def __post_init__(self) -> None:
        # the names behind the colon are checked where the packages are imported
        theirs = self.encoder.partition(":")[0] in ("torchvision", "timm") and self.encoder[-1:] != ":"
        known = self.encoder == "resnet" or (theirs and ":" in self.encoder)
        _check(known, "model.encoder", self.encoder[:80], "resnet, torchvision:NAME or timm:NAME")
        _check(self.width > 0, "model.width", self.width, "positive")
        _check(self.head_layers >= 1, "model.head_layers", self.head_layers, "at least 1")
        _check(self.proj_dim >= 1, "model.proj_dim", self.proj_dim, "at least 1")

    def warn_of_ignored(self) -> None:
        """Issue an `IgnoredSetting` if the encoder is no ResNet of ours and settings of one are not the defaults."""
        default = ModelConfig()
        given = [name for name in RESNET_SETTINGS if getattr(self, name) != getattr(default, name)]
        if given and self.encoder != "resnet":
            values = ", ".join(f"model.{name} {getattr(self, name)!r}" for name in given)
            warnings.warn(
                f"{values} {'has' if len(given) == 1 else 'have'} no effect with model.encoder {self.encoder!r}: "
                f"only resnet takes {'it' if len(given) == 1 else 'them'}; leave out what is ignored",
                IgnoredSetting,
                stacklevel=2,
            )


accept_old_fields(ModelConfig, {"head_hidden": "proj_hidden_dim", "head_out": "proj_dim"})


@dataclass(frozen=True)
class LossConfig:
    """The contrastive loss."""

    name: Literal["nt_xent", "nt_logistic", "margin_triplet"] = "nt_xent"
    """NT-Xent, or one of the alternatives of the paper's Table 4."""
    temperature: float = 0.1
    """Divides the similarities; 0.1 for ImageNet, 0.5 for CIFAR-10."""
    margin: float = 0.8
    """Margin of margin_triplet; the other losses ignore it."""
    semi_hard: bool = False
    """Mine semi-hard negatives, for nt_logistic and margin_triplet."""
    scale: float = 1.0
    """Factor on the loss; 2 reproduces the authors' code, which adds the two views' means."""

    def __post_init__(self) -> None:
        if self.name == "margin":  # type: ignore[comparison-overlap]
            warnings.warn(
                'LossConfig.name "margin" is now "margin_triplet"', DeprecationWarning, stacklevel=3
            )
            object.__setattr__(self, "name", "margin_triplet")
        _check(self.temperature > 0, "loss.temperature", self.temperature, "positive")
        _check(0 < self.margin < 2, "loss.margin", self.margin, "above 0 and below 2")
        _check(self.scale > 0, "loss.scale", self.scale, "positive")


@dataclass(frozen=True)
class OptimConfig:
    """Optimizer and learning rate."""

    name: Literal["lars", "muon", "sgd", "adamw"] = "lars"
    """LARS; muon, which is LARS with orthogonal steps of the convolutions, for short runs; or SGD with Nesterov
    momentum or AdamW for small batches."""
    impl: Literal["auto", "reference", "fused", "apex"] = "auto"
    """Implementation of LARS; auto: fused on a GPU, else the reference."""
    form: Literal["authors", "popular", "port"] = "authors"
    """Form of LARS: as in the authors' code, the common variant (popular), or as in the PyTorch ports (port)."""
    base_lr: float = 0.3
    """Learning rate before scaling; with linear scaling at a batch of 256."""
    scaling: Literal["linear", "sqrt"] = "linear"
    """lr = base_lr·B/256 (linear) or base_lr·√B (sqrt, better for small batches), B being the global batch."""
    warmup_epochs: float = 10.0
    """Epochs over which the learning rate rises from 0, in every step; a cosine to 0 follows."""
    momentum: float = 0.9
    """Momentum of LARS, Muon and SGD; AdamW has β₁ = 0.9, β₂ = 0.95."""
    weight_decay: float = 1e-6
    """Decay of the weights; biases and batch norm have none."""
    trust_coefficient: float = 1e-3
    """η of LARS and Muon."""

    def __post_init__(self) -> None:
        _check(self.base_lr >= 0, "optim.base_lr", self.base_lr, "0 or more")
        _check(self.warmup_epochs >= 0, "optim.warmup_epochs", self.warmup_epochs, "0 or more")
        _check(0 <= self.momentum < 1, "optim.momentum", self.momentum, "0 to 1, less than 1")
        _check(self.weight_decay >= 0, "optim.weight_decay", self.weight_decay, "0 or more")
        _check(self.trust_coefficient > 0, "optim.trust_coefficient", self.trust_coefficient, "positive")


@dataclass(frozen=True)
class TrainConfig:
    """Length, batch and machine."""

    epochs: int = 100
    """Passes over the data."""
    batch_size: int = 4096
    """Images of a step, over all ranks; each gives two views."""
    micro_batch: int | None = None
    """Images of a rank in memory at once (GradCache), at the cost of one more forward pass; None: the whole batch."""
    seed: int = 0
    """Seed of the initial weights, the order and the views."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of convolutions and matrix products; auto: bfloat16 where the hardware has it."""
    compile: bool = False
    """Compile the model with torch.compile: slower to start, faster to run."""
    graph: bool = False
    """Capture a whole step in a CUDA graph: for small images, whose kernels are shorter than their launches."""
    device: str = "auto"
    """cpu, cuda, cuda:N, or auto: a GPU where there is one."""
    threads: int | None = None
    """Threads that compute on a CPU; None: one per core, except the cores of the loader's threads."""
    log_every: int = 10
    """Steps between two lines of metrics.jsonl; the loss is checked for NaN as often."""
    checkpoint_minutes: float = 10.0
    """Minutes between two checkpoints; there is always one at the end."""
    eval_epochs: int = 10
    """Epochs between two evaluations of the encoder by kNN, where `--val` names held-out images."""
    eval_size: int | None = None
    """Side length in pixels of the images that the encoder is evaluated on; None: views.size."""

    def __post_init__(self) -> None:
        _check(self.epochs >= 1, "train.epochs", self.epochs, "at least 1")
        _check(
            self.batch_size >= 2,
            "train.batch_size",
            self.batch_size,
            "at least 2: negatives come from the batch",
        )
        _check(
            self.threads is None or self.threads >= 1,
            "train.threads",
            self.threads,
            "at least 1, or left out",
        )
        _check(
            self.micro_batch is None or self.micro_batch >= 1,
            "train.micro_batch",
            self.micro_batch,
            "at least 1, or left out",
        )
        _check(
            self.eval_size is None or 1 <= self.eval_size <= MAX_SIZE,
            "train.eval_size",
            self.eval_size,
            f"1 to {MAX_SIZE}, or left out",
        )
        _check(self.eval_epochs >= 1, "train.eval_epochs", self.eval_epochs, "at least 1")
        _check(self.log_every >= 1, "train.log_every", self.log_every, "at least 1")
        _check(self.checkpoint_minutes > 0, "train.checkpoint_minutes", self.checkpoint_minutes, "positive")


@dataclass(frozen=True)
class Config:
    """All settings of a training run, except the file and the run folder."""

    RECIPE_SECTIONS: ClassVar[tuple[str, ...]] = (
        "data",
        "views",
        "model",
        "loss",
        "optim",
        "train",
        "schedule",
    )
    """Sections that a recipe may have, in the order in which they are written."""

    data: DataConfig = field(default_factory=DataConfig)
    views: ViewSpec | tuple[ViewSpec, ...] = field(default_factory=ViewSpec.simclr)
    """The views of an image: one spec, or several in the order of the views; a tuple of one becomes that one."""
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    schedule: Annotated[tuple[Scheduled, ...], tyro.conf.Fixed, tyro.conf.Suppress] = ()
    """Settings of `views` and `loss` that change in the course of the run; views.size is then the largest size."""

    def __post_init__(self) -> None:
        specs = as_specs(self.views)
        object.__setattr__(self, "views", specs[0] if len(specs) == 1 else specs)
        for name, value in flatten(self).items():
            numbers = value if isinstance(value, tuple) else (value,)
            if any(isinstance(number, int) and abs(number) > MAX_WHOLE_NUMBER for number in numbers):
                raise ValueError(f"{name} is a number of more than 20 digits; it must be below 2⁶⁴")
            finite = all(math.isfinite(number) for number in numbers if isinstance(number, float))
            _check(finite, name, value, "finite")
        _check(
            self.optim.warmup_epochs <= self.train.epochs,
            "optim.warmup_epochs",
            self.optim.warmup_epochs,
            f"at most train.epochs, {self.train.epochs}",
        )
        object.__setattr__(self, "schedule", tuple(sorted(self.schedule, key=lambda each: each.name)))
        check_schedule(self.schedule, self.view_specs, self.loss)

    def views_at(self, share: float) -> tuple[ViewSpec, ...]:
        """Return the views where `share` of the run is done, 0 to 1."""
        return as_specs(views_at(self.view_specs, self.schedule, share))

    def loss_at(self, share: float) -> LossConfig:
        """Return the settings of the loss where `share` of the run is done, 0 to 1."""
        return changed(self.loss, "loss", self.schedule, share)

    @property
    def eval_size(self) -> int:
        """Height and width in pixels of the images that the encoder is evaluated on."""
        return self.train.eval_size or self.view_size

    @property
    def field_names(self) -> tuple[str | None, str | None]:
        """Names of the image and the label field, as BetonReader takes them."""
        return self.data.image_field, self.data.label_field

    def with_fields(self, image_field: str | None, label_field: str | None) -> "Config":
        """Return the config with these names of fields; None leaves a name as it is."""
        data = dataclasses.replace(
            self.data,
            image_field=image_field or self.data.image_field,
            label_field=label_field or self.data.label_field,
        )
        return dataclasses.replace(self, data=data)

    @property
    def view_specs(self) -> tuple[ViewSpec, ...]:
        """The views as a tuple of specs, also where there is one; all of them have one mean and one std."""
        return as_specs(self.views)

    @property
    def view_size(self) -> int:
        """Height and width of the first view in pixels, the largest of a schedule.

        In training (`check_views`) all views of a step have one size.
        """
        return self.view_specs[0].size


def flatten(config: Config) -> dict[str, Any]:
    """Return all settings by their dotted names, in the order of the dataclasses; several specs are numbered from 0.

    A schedule is one string for each setting that it changes.

    >>> flatten(Config())["optim.momentum"]
    0.9
    >>> flatten(Config(views=(ViewSpec(96), ViewSpec(48))))["views[1].size"]
    48
    """
    return {
        f"{name}.{key.name}": getattr(section, key.name)
        for name, section in _numbered_sections(config)
        for key in dataclasses.fields(section)
    } | {f"schedule.{each.name}": each.table() for each in config.schedule}


def _numbered_sections(config: Config) -> Iterator[tuple[str, Any]]:
    """Yield the dataclasses of a config with their names; several specs are views[0], views[1], …"""
    for name in (each.name for each in dataclasses.fields(config) if each.name != "schedule"):
        section = getattr(config, name)
        if isinstance(section, tuple):
            yield from ((f"{name}[{i}]", spec) for i, spec in enumerate(section))
        else:
            yield name, section
