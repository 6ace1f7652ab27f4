"""A folder for the Hugging Face hub that timm opens: config.json, model.safetensors, and a model card."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save as safetensors_bytes
from torch import Tensor

from fastclr import __version__
from fastclr.export.counterparts import Counterpart
from fastclr.recipes import CONFIG_FILE
from fastclr.train.checkpoint import atomic_write

FILES = ("config.json", "model.safetensors", "README.md")
EVALUATION = "evaluate.json"
"""Name of the result of `fastclr evaluate` in a run folder."""
UNKNOWN_LICENSE = "unknown"


def write_folder(
    folder: Path,
    target: Counterpart,
    state: Mapping[str, Tensor],
    images: Mapping[str, Any],
    num_classes: int | None,
    license: str | None,
    run: Path | None,
) -> None:
    """Write the folder.

    Args:
        folder: made if it is missing; only files of an earlier export are replaced.
        target: timm's model.
        state: its state_dict.
        images: how its images are made, as `image_metadata` returns them.
        num_classes: outputs of the classifier; None: none.
        license: identifier of a licence, such as apache-2.0; None: unknown.
        run: the run folder whose recipe and accuracies the card shows, where it has them.

    Raises:
        OSError: the folder holds other files, or can't be written.
    """
    if folder.is_dir() and (
        other := sorted({path.name for path in folder.iterdir()} - {*FILES, ".git", ".gitattributes"})
    ):
        raise FileExistsError(f"{folder} holds other files ({other[0]}); give a new folder")
    size, features = images["size"], int(target.make(None).num_features)  # type: ignore[arg-type]
    config = {
        "architecture": target.name,
        "num_classes": num_classes or 0,
        "num_features": features,
        "pretrained_cfg": {
            "tag": "fastclr",
            "custom_load": False,
            "input_size": [3, size, size],
            "fixed_input_size": "img_size" in target.args,
            "interpolation": "bilinear",
            "crop_pct": images["center_crop_fraction"],
            "crop_mode": "center",
            "mean": images["mean"],
            "std": images["std"],
            "num_classes": num_classes or 0,
            "license": license or UNKNOWN_LICENSE,
        },
        "model_args": target.args,
    }
    card = model_card(folder.name, target, images, features, num_classes, license or UNKNOWN_LICENSE, run)
    weights = {name: tensor.contiguous() for name, tensor in state.items()}
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in zip(
        FILES,
        (
            f"{json.dumps(config, indent=2)}\n".encode(),
            safetensors_bytes(weights, {"format": "pt"}),
            card.encode(),
        ),
        strict=True,
    ):
        with atomic_write(folder / name) as file:
            file.write(data)


def model_card(
    name: str,
    target: Counterpart,
    images: Mapping[str, Any],
    num_features: int,
    num_classes: int | None,
    license: str,
    run: Path | None,
) -> str:
    """Return README.md: front matter, how to open the model, data, recipe and accuracies as far as the run has them."""
    front = [
        "---",
        f"license: {license}",
        "library_name: timm",
        "pipeline_tag: image-feature-extraction",
        "tags: [timm, image-feature-extraction, self-supervised-learning, simclr, fastclr]",
        "---",
    ]
    head = f" and a classifier of zeros for {num_classes} classes" if num_classes else ""
    open_it = [
        "```python",
        "import timm",
        f'model = timm.create_model("local-dir:{name}", pretrained=True)  # or hf-hub:USER/{name}',
        "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))",
        "```",
    ]
    evaluation = _evaluation(run)
    parts = [
        *front,
        "",
        f"# {name}",
        "",
        f"timm's `{target.name}`, pre-trained without labels (SimCLR, arXiv 2002.05709) by fastclr {__version__}: "
        f"{num_features} features of an image of {images['size']} px{head}.",
        "",
        *open_it,
        "",
        "## Images",
        "",
        f"- {images['preprocessing']}",
        f"- size {images['size']}, fraction {images['center_crop_fraction']:g}",
        f"- mean {images['mean']}, std {images['std']}",
        "",
        "## Data",
        "",
        *_data(run, evaluation),
        "",
        "## Accuracy",
        "",
        *_accuracies(evaluation),
        "",
        "## Recipe",
        "",
        *_recipe(run),
        "",
    ]
    return "\n".join(parts)


def _evaluation(run: Path | None) -> dict[str, Any] | None:
    """Return the result of the run's last evaluation."""
    try:
        found = json.loads((run / EVALUATION).read_bytes()) if run else None
        return found if isinstance(found, dict) and "knn" in found else None
    except (OSError, ValueError, RecursionError):
        return None


def _config(run: Path | None) -> str | None:
    try:
        return (run / CONFIG_FILE).read_text(encoding="utf-8").rstrip("\n") if run else None
    except (OSError, ValueError):
        return None


def _data(run: Path | None, evaluation: dict[str, Any] | None) -> list[str]:
    lines = []
    for line in (_config(run) or "").splitlines():
        if line.startswith("# file: "):
            lines.append(f"- pre-training: `{Path(line.removeprefix('# file: ')).name}`")
    for key in ("train", "test"):
        if evaluation and isinstance(data := evaluation.get(key), dict):
            lines.append(
                f"- evaluation, {key}: `{Path(data['file']).name}`, {data['samples']:,} images, fingerprint "
                f"`{data['fingerprint']}`"
            )
    return lines or ["Not recorded."]


def _accuracies(evaluation: dict[str, Any] | None) -> list[str]:
    if evaluation is None:
        return ["Not evaluated."]
    names = {"knn": "weighted kNN", "linear": "linear probe", "logistic": "logistic regression"}
    rows = [f"| {names[key]} | {evaluation[key]['top1']:.2%} |" for key in names if key in evaluation]
    return ["| measurement | top-1 |", "|---|---:|", *rows]


def _recipe(run: Path | None) -> list[str]:
    config = _config(run)
    return ["Not recorded."] if config is None else ["```toml", config, "```"]
