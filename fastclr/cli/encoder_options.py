"""The options of commands that run an encoder on images: what its images are like, and what computes."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fastclr.config import MAX_SIZE

if TYPE_CHECKING:
    from fastclr.evaluate.encoder import FrozenEncoder


@dataclass(frozen=True)
class EncoderOptions:
    """Images of the encoder, and the machine."""

    size: int | None = None
    """Height and width of all images in pixels; None: as the encoder's file says (a recipe sets it by train.eval_size),
    or else 224, and 32 for a 3×3 stem."""
    mean: tuple[float, float, float] | None = None
    """Subtracted from each channel, on a scale of [0, 1]; None: as the encoder's file says, or else ImageNet's."""
    std: tuple[float, float, float] | None = None
    """Divides each channel; None: likewise."""
    device: str = "auto"
    """cpu, cuda, cuda:N, or auto: a GPU where there is one."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the encoder; auto: bfloat16 where the hardware has it."""
    threads: int | None = None
    """Loader threads; None: one on a CPU, one per core beside a GPU."""

    def __post_init__(self) -> None:
        # now, before a file of gigabytes is read
        if self.size is not None and not 1 <= self.size <= MAX_SIZE:
            raise ValueError(f"--size is {self.size}; it must be 1 to {MAX_SIZE} pixels")

    def open(
        self, source: Path, note: Callable[[str], None], **changes: Any
    ) -> tuple["FrozenEncoder", dict[str, Any]]:
        """Open an encoder and move it to the device; see `fastclr.export.open_encoder`.

        Args:
            source: what the user named.
            note: receives a line about what was found and assumed.
            changes: further fields of the FrozenEncoder.

        Returns:
            The encoder, ready to run, and its metadata.
        """
        import torch

        from fastclr.device import has_bfloat16, pick_device
        from fastclr.evaluate.encoder import FrozenEncoder
        from fastclr.export import open_encoder

        encoder, meta = open_encoder(source, size=self.size, mean=self.mean, std=self.std, note=note)
        device = pick_device(self.device)
        half = self.precision == "bfloat16" or (self.precision == "auto" and has_bfloat16(device))
        model = FrozenEncoder.from_meta(
            encoder,
            meta,
            device,
            autocast=torch.bfloat16 if half else None,
            num_threads=self.threads,
            **changes,
        )
        return model, meta


def precision_of(model: "FrozenEncoder") -> str:
    """Return the precision of an encoder, as --precision names it."""
    return "float32" if model.autocast is None else "bfloat16"
