"""The projection head of a run, `projector.safetensors`: to fine-tune from one of its layers.

Metadata: `kwargs`, the arguments of `fastclr.model.projector`, and the step.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from fastclr.model import projector
from fastclr.train.weights_file import find_weights, read_weights, rebuilding, write_weights

PROJECTOR = "projector.safetensors"
"""Name of the file in a run folder."""


def export_projector(path: Path, head: nn.Module, meta: Mapping[str, Any]) -> None:
    """Write the weights of a head that `projector(**meta["kwargs"])` made.

    Raises:
        OSError: the file can't be written.
    """
    write_weights(path, head.state_dict(), meta)


def load_projector(path: str | Path) -> tuple[nn.Module, dict[str, Any]]:
    """Rebuild the projection head of a run.

    Args:
        path: a `projector.safetensors`, or the run folder that holds one.

    Returns:
        The head, on the CPU, and the metadata that were given to `export_projector`.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the file is corrupt, or its weights don't fit its metadata.
    """
    path = find_weights(
        path, PROJECTOR, "no projection head here; runs of `fastclr train` have one since version 0.2"
    )
    weights, meta = read_weights(path)
    with rebuilding(path):
        head = projector(**meta["kwargs"])
        head.load_state_dict(weights)
    return head, meta
