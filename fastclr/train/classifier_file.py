"""A fine-tuned classifier in one file, `classifier.safetensors`: weights, and metadata to rebuild it.

Metadata: those of the encoder (`encoder_file.py`), `projector` (the arguments of `fastclr.model.projector`, or null),
`from_layer`, `num_classes`, `class_names` (or null), and the step.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastclr.model import Classifier, make_encoder, projector
from fastclr.train.weights_file import find_weights, read_weights, rebuilding, write_weights

CLASSIFIER = "classifier.safetensors"
"""Name of the file in a run folder."""


def export_classifier(path: Path, model: Classifier, meta: Mapping[str, Any]) -> None:
    """Write a classifier whose parts `make_encoder` and `projector` made.

    Raises:
        OSError: the file can't be written.
    """
    write_weights(path, model.state_dict(), meta)


def load_classifier(path: str | Path) -> tuple[Classifier, dict[str, Any]]:
    """Rebuild a classifier from its file alone.

    Args:
        path: a `classifier.safetensors`, or the run folder of `fastclr finetune` that holds one.

    Returns:
        The classifier, in evaluation mode on the CPU, and its metadata.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the file is corrupt, or its weights don't fit its metadata.
    """
    path = find_weights(path, CLASSIFIER, "no classifier here; `fastclr finetune` writes one")
    weights, meta = read_weights(path)
    with rebuilding(path):
        encoder = make_encoder(meta["encoder"], **meta["kwargs"])
        layers = [] if meta["projector"] is None else list(projector(**meta["projector"]))  # type: ignore[call-overload]
        model = Classifier(encoder, layers[: meta["from_layer"]], meta["num_classes"])
        model.load_state_dict(weights)
    return model.eval(), meta
