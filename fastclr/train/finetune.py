"""Fine-tuning, the task of `fastclr finetune`: an encoder becomes a classifier, on all labels or a fraction of them.

Chen et al. 2020 (arXiv 2002.05709), section 6 and appendix B.5, and SimCLR v2 (arXiv 2006.10029), section 2:
cross-entropy, views of crop and flip alone, the centre of the image at test time.
"""

import hashlib
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from fastclr.device import pick_device
from fastclr.evaluate.encoder import FrozenEncoder, check_same_classes, labelled_samples
from fastclr.evaluate.features import extract_features, state_digest
from fastclr.export import open_encoder
from fastclr.finetune_config import FinetuneConfig
from fastclr.model import Classifier, make_encoder, projector
from fastclr.train.build import check_memory, encoder_meta, make_optimizer, peak_lr, resolve_machine
from fastclr.train.classifier_file import CLASSIFIER, export_classifier
from fastclr.train.distributed import (
    Ranks,
    data_parallel,
    mean_over_ranks,
    process_group,
    ranks_from_env,
)
from fastclr.train.encoder_file import ENCODER, export_encoder
from fastclr.train.loop import Outcome
from fastclr.train.projector_file import load_projector
from fastclr.train.run import run_identity
from fastclr.train.session import Session, evaluation_is_due
from fastclr.train.sinks import read_metrics
from fastclr.train.subset import balanced_fraction, listed_samples
from pipelines import BetonReader
from pipelines.beton import Files
from pipelines.contracts import Batch
from pipelines.system.output import say

ACCURACIES = ("test_top1", "test_top5")
"""Results of an evaluation, in records and reports."""
TOP_K = 5
"""An image counts for top-5 if its class is among the five with the largest logits."""


class Start(NamedTuple):
    """What a fine-tuning begins with."""

    encoder: nn.Module
    layers: list[nn.Module]
    """The kept layers of the projection head."""
    meta: dict[str, Any]
    """Metadata of the encoder."""
    projector_kwargs: dict[str, Any] | None


def finetune(
    config: FinetuneConfig,
    run: str | Path,
    train: Files,
    test: Files,
    folder: Path,
    *,
    names: Path | None = None,
    fresh: bool = False,
    resume: bool = False,
) -> tuple[Outcome, dict[str, Any]]:
    """Fine-tune the encoder of a run; the classifier, checkpoint and metrics go into `folder`.

    A fine-tuning that `folder` holds is continued as a run of `fastclr.train.pretrain.train` is.

    Args:
        config: the recipe.
        run: run folder, or another encoder that `fastclr.export.open_encoder` opens.
        train: labelled images to learn from.
        test: labelled images of the same classes, to be tested on; they don't influence the training.
        folder: the folder of this run.
        names: a list of the images to learn from, one name a line, in place of `finetune.fraction`.
        fresh, resume: see `fastclr.train.pretrain.train`.

    Returns:
        The outcome, and a report: number of images and classes, the settings that chose them, and on rank 0 of a
        complete run test_top1 and test_top5, 0 to 1.

    Raises:
        ValueError: settings that don't fit the run or the data: a run without projection head for `from_layer`, labels
            that differ, a fraction that leaves a class empty, a list that names no image.
        OSError: a file that can't be read or written.
    """
    ranks = ranks_from_env()
    device = pick_device(config.train.device, ranks.local_rank, ranks.local_world_size, "--train.device")
    _check_settings(config)
    start = _start(run, config)
    with process_group(ranks, device), ExitStack() as stack:
        reader = stack.enter_context(BetonReader(train, *config.field_names))
        test_reader = stack.enter_context(BetonReader(test, *config.field_names))
        num_classes = check_same_classes(reader, test_reader)
        samples = chosen_samples(config, reader, names)
        config = resolve_machine(config.with_model_of(start.meta), reader, device, ranks.local_world_size)
        identity = {
            **run_identity(config, reader, ranks.world_size),
            "the images that are learnt from": hashlib.sha256(samples.tobytes()).hexdigest()[:16],
            "the weights that are fine-tuned": _digest(start),
        }
        session = Session(config, reader, folder, ranks, device, identity, samples)
        build = partial(_build, session, start, num_classes, test_reader)
        outcome = session.run(build, fresh=fresh, resume=resume)
        report = {
            "images": len(samples),
            "test_images": int((test_reader.labels >= 0).sum()),
            "num_classes": num_classes,
            "fraction": None if names else config.finetune.fraction,
            "subset_seed": None if names else config.finetune.subset_seed,
            "list": None if names is None else str(names),
            "seed": config.train.seed,
            "from_layer": config.finetune.from_layer,
            "from_scratch": config.finetune.from_scratch,
            "head_only": config.finetune.head_only,
        }
        if ranks.is_main and outcome.step == outcome.total_steps:
            last = read_metrics(folder)[-1]
            report |= {name: last[name] for name in ACCURACIES}
        return outcome, report


@dataclass(frozen=True, eq=False)
class Finetuning:
    """Supervised training of a classifier as a task of the training loop."""

    config: FinetuneConfig
    """Resolved."""
    model: Classifier
    optimizer: torch.optim.Optimizer
    forward: nn.Module
    """The model, perhaps compiled or in DDP."""
    autocast: Callable[[], AbstractContextManager]
    ranks: Ranks
    num_images: int
    """Images that are learnt from."""
    test: Callable[[], dict[str, float]]
    """Measures the classifier."""
    meta: dict[str, Any]
    """Metadata of the classifier's file."""

    def take_step(self, batch: Batch, lr: float) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Take a step; return its loss, and logits and labels."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        labels = batch.labels.to(batch.views.device, non_blocking=True)
        with self.autocast():
            logits = self.forward(batch.views[0])
        loss = F.cross_entropy(logits.float(), labels)
        loss.backward()
        self.optimizer.step()
        return loss.detach(), (logits.detach(), labels)

    def metrics(self, output: tuple[Tensor, Tensor]) -> dict[str, float]:
        """Return the top-1 accuracy on the step's own images, over all ranks."""
        logits, labels = output
        return {"top1": mean_over_ranks((logits.argmax(1) == labels).float().mean(), self.ranks).item()}

    def evaluation_is_due(self, done: int) -> bool:
        """Whether the test images are due."""
        return evaluation_is_due(self.config, self.num_images, done)

    def evaluate(self) -> dict[str, float]:
        """Return test_top1 and test_top5, 0 to 1."""
        return self.test()

    def export(self, folder: Path, done: int) -> None:
        """Write the classifier and, for `fastclr evaluate`, its encoder."""
        export_classifier(folder / CLASSIFIER, self.model, {**self.meta, "step": done})
        export_encoder(folder / ENCODER, self.model.encoder, {**encoder_meta(self.config), "step": done})


def chosen_samples(config: FinetuneConfig, reader: BetonReader, names: Path | None) -> np.ndarray:
    """Return the samples that are learnt from, int64 and sorted: those of a list, else a class-balanced fraction."""
    if names is not None:
        return listed_samples(reader, names)
    settings = config.finetune
    return balanced_fraction(reader.labels, settings.fraction, settings.subset_seed, f"{reader.path}")


def _check_settings(config: FinetuneConfig) -> None:
    for name in ("micro_batch", "graph"):
        if getattr(config.train, name):
            raise ValueError(
                f"train.{name} has no meaning in fine-tuning, which has no negatives; leave it out"
            )


def _start(run: str | Path, config: FinetuneConfig) -> Start:
    """Read encoder and projection head, or make fresh ones of the same shapes."""
    settings = config.finetune
    encoder, meta = open_encoder(run, size=settings.size, note=say)
    torch.manual_seed(config.train.seed)
    if settings.from_scratch:
        encoder = make_encoder(meta["encoder"], **meta["kwargs"])
    if settings.from_layer == 0:
        return Start(encoder, [], meta, None)
    head, head_meta = load_projector(Path(run) if Path(run).is_dir() else Path(run).parent)
    kwargs = head_meta["kwargs"]
    layers = list(projector(**kwargs) if settings.from_scratch else head)  # type: ignore[call-overload]
    if settings.from_layer > len(layers):
        raise ValueError(
            f"finetune.from_layer is {settings.from_layer}, but the projection head of {run} has {len(layers)} layers"
        )
    return Start(encoder, layers[: settings.from_layer], meta, kwargs)


def _digest(start: Start) -> str:
    return state_digest(nn.ModuleList([start.encoder, *start.layers]))[:16]


def _build(session: Session, start: Start, num_classes: int, test: BetonReader) -> Finetuning:
    """Build the task; the config of the session is a FinetuneConfig."""
    config, ranks, device = session.config, session.ranks, session.device
    assert isinstance(config, FinetuneConfig)
    torch.manual_seed(config.train.seed)
    model = Classifier(start.encoder, start.layers, num_classes, config.finetune.head_only)
    model = model.to(device).to(memory_format=torch.channels_last).train()
    if device.type == "cpu":
        check_memory(config, model, ranks.local_world_size, ranks.world_size)
    optimizer = make_optimizer(config.optim, model, peak_lr(config))
    forward = data_parallel(model, ranks, compiled=config.train.compile)
    autocast = partial(torch.autocast, device.type, torch.bfloat16, config.train.precision == "bfloat16")
    meta = {
        **encoder_meta(config),
        "projector": start.projector_kwargs,
        "from_layer": config.finetune.from_layer,
        "num_classes": num_classes,
        "class_names": session.reader.class_names,
    }
    measure = partial(accuracy_on, test, model, config, ranks, device)
    return Finetuning(config, model, optimizer, forward, autocast, ranks, session.num_images, measure, meta)


def accuracy_on(
    test: BetonReader, model: Classifier, config: FinetuneConfig, ranks: Ranks, device: torch.device
) -> dict[str, float]:
    """Return test_top1 and test_top5 on centre crops of the labelled images, which the ranks share."""
    spec = config.view_specs[0]
    autocast = torch.bfloat16 if config.train.precision == "bfloat16" else None
    frozen = FrozenEncoder(
        model, config.eval_size, spec.mean, spec.std, device, autocast, num_threads=config.data.threads
    )
    labelled = labelled_samples(test)
    samples = np.arange(len(test)) if labelled is None else labelled
    own = samples[ranks.rank :: ranks.world_size]
    counts = torch.zeros(3, dtype=torch.int64)
    if len(own):
        with frozen.loader(test, frozen.center(), indices=own) as loader:
            logits, labels = extract_features(model, loader, device=device, autocast=autocast)
        best = logits.topk(min(TOP_K, logits.shape[1])).indices
        hits = best == labels[:, None]
        counts = torch.tensor([int(hits[:, 0].sum()), int(hits.sum()), len(labels)])
    if ranks.world_size > 1:
        dist.all_reduce(counts)
    top1, top5, total = counts.tolist()
    return dict(zip(ACCURACIES, (top1 / total, top5 / total), strict=True))
