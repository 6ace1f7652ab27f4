"""The model of torchvision or timm that has the shape of an encoder, and takes its weights strictly."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fastclr.model import make_encoder
from pipelines.system.terminal import one_line

NAMED_DEPTHS = (18, 34, 50, 101, 152)
"""Depths for which torchvision and timm have a `resnet…` of our shape."""
TOLERANCE = 1e-5
"""Largest difference of features, relative to the largest feature: rounding, in another order of sums."""


@dataclass(frozen=True)
class Counterpart:
    """A model of a library."""

    library: str
    """torchvision or timm."""
    name: str
    """As the library's factory takes it."""
    args: dict[str, Any] = field(default_factory=dict)
    """Further arguments of the factory."""

    def make(self, num_classes: int | None) -> nn.Module:
        """Make the model with fresh weights; None: without a classifier."""
        if self.library == "timm":
            import timm

            return timm.create_model(self.name, pretrained=False, num_classes=num_classes or 0, **self.args)
        from torchvision import models

        if num_classes is None:
            return make_encoder(f"torchvision:{self.name}", size=self.args.get("image_size", 224))
        return models.get_model(self.name, weights=None, num_classes=num_classes, **self.args)

    def code(self, num_classes: int | None, file: str) -> str:
        """Return the lines of Python that make the model and load its weights from a file."""
        args = "".join(f", {name}={value!r}" for name, value in self.args.items())
        read = (
            f"safetensors.torch.load_file({file!r})"
            if file.endswith(".safetensors")
            else f"torch.load({file!r})"
        )
        load = f"model.load_state_dict({read})"
        if self.library == "timm":
            return f"model = timm.create_model({self.name!r}, num_classes={num_classes or 0}{args})\n{load}"
        if num_classes is not None:
            return f"model = torchvision.models.{self.name}(num_classes={num_classes}{args})\n{load}"
        head = (
            "model.fc = torch.nn.Identity()\n"
            if self.name.startswith("resnet")
            else "# classifier: Identity\n"
        )
        return f"model = torchvision.models.{self.name}({args.removeprefix(', ')})\n{head}{load}"


def counterpart(meta: Mapping[str, Any], library: str) -> Counterpart:
    """Return the model of a library that has the encoder's shape.

    Args:
        meta: metadata as `load_encoder` and `open_encoder` return them.
        library: torchvision or timm.

    Raises:
        ValueError: parts of the encoder have no counterpart there; or timm is not installed.
    """
    family, _, name = meta["encoder"].partition(":")
    if library == "timm":
        _check_timm()
    if family != "resnet":
        if family == library:
            return Counterpart(library, name, _size_args(library, name, meta["kwargs"]["size"]))
        if name in [f"resnet{depth}" for depth in NAMED_DEPTHS]:
            return Counterpart(library, name)
        raise ValueError(f"{library} has no counterpart of {meta['encoder']}; export it to {family} or onnx")
    kwargs, missing = meta["kwargs"], list(meta.get("changes", ()))
    stems = {
        "cifar": "CIFAR stem (3×3, stride 1, no max-pool)",
        "stride2": "stem of stride 2 without max-pool",
        "whitened": "whitened stem (4×4, stride 2)",
    }
    if kwargs.get("stem") in stems:
        missing.append(stems[kwargs["stem"]])
    if kwargs.get("width", 1) != 1:
        missing.append(f"width {kwargs['width']:g}")
    if kwargs.get("sk_ratio"):
        missing.append("selective kernels")
    if kwargs.get("stages", 4) != 4:
        missing.append(f"{kwargs['stages']} stages")
    depth = kwargs["depth"]
    if depth not in NAMED_DEPTHS and library == "torchvision":
        missing.append(f"depth {depth}")
    if missing:
        raise ValueError(
            f"{library} has no counterpart of the encoder's {' and '.join(missing)}; export it to onnx or "
            "torchscript, or see docs/encoders.md for a CIFAR stem by hand"
        )
    if depth not in NAMED_DEPTHS:
        return Counterpart(library, "resnet18", {"layers": [1, 1, 1, 1]})
    return Counterpart(library, f"resnet{depth}")


def _check_timm() -> None:
    try:
        import timm  # noqa: F401
    except ImportError:
        raise ValueError("an export to timm needs timm: pip install 'fastclr[timm]'") from None


def _size_args(library: str, name: str, size: int) -> dict[str, Any]:
    """Return the argument that says the image size, of a model that has it."""
    if library == "torchvision":
        return {"image_size": size} if name.startswith("vit_") else {}
    import timm

    state = torch.get_rng_state()
    try:
        with torch.device("meta"):
            timm.create_model(name, num_classes=0, img_size=size)
    except TypeError:
        return {}
    finally:
        torch.set_rng_state(state)
    return {"img_size": size}


def transfer(
    encoder: nn.Module, target: Counterpart, size: int, num_classes: int | None
) -> dict[str, Tensor]:
    """Return the state_dict of the library's model with the encoder's weights, and a classifier of zeros.

    Args:
        encoder: in evaluation mode.
        target: its counterpart.
        size: pixels of an image, for the comparison of their features.
        num_classes: outputs of the classifier; None: none.

    Raises:
        ValueError: the weights don't fit, or the features of the two models differ.
    """
    state = {name: tensor.detach().clone() for name, tensor in encoder.state_dict().items()}
    try:
        plain = target.make(None).eval()
        plain.load_state_dict(state, strict=True)
        if num_classes is not None:
            head = {
                n: torch.zeros_like(t)
                for n, t in target.make(num_classes).state_dict().items()
                if n not in state
            }
            state |= head
            target.make(num_classes).load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise ValueError(
            f"the weights don't fit {target.library}'s {target.name}: {one_line(error)[:300]}"
        ) from None
    images = random_images(2, size)
    with torch.no_grad():
        check_equal(plain(images), encoder(images), TOLERANCE, f"{target.library}'s {target.name}")
    return state


def random_images(count: int, size: int) -> Tensor:
    """Return normalised noise, float32 [count, 3, size, size], the same in every call."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 3, size, size, generator=generator)


def check_equal(found: Tensor, expected: Tensor, tolerance: float, what: str) -> float:
    """Return the largest difference, relative to the largest feature.

    Raises:
        ValueError: it is above the tolerance.
    """
    if found.shape != expected.shape:
        raise ValueError(f"{what} gives features {list(found.shape)}, the encoder {list(expected.shape)}")
    difference = float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-12))
    if not difference <= tolerance:
        raise ValueError(
            f"{what} gives other features than the encoder (by {difference:.1e}, where {tolerance:.0e} is rounding)"
        )
    return difference
