"""From a config to the parts of a run: what `auto` means here, model, loss and optimizer."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fastclr.config import RESNET_SETTINGS, Config, LossConfig, ModelConfig, OptimConfig, TrainConfig
from fastclr.device import has_bfloat16
from fastclr.loss import margin_triplet, nt_logistic, nt_xent
from fastclr.model import SimCLR, make_encoder, projector
from fastclr.optim import LARS
from fastclr.train.distributed import Ranks, data_parallel
from fastclr.train.step import CapturedStep, EagerStep
from pipelines import BetonReader, TwoViewLoader
from pipelines.system.cpus import cores

RESIDENT_BYTES = 1 << 30
"""Up to this size a decoded data set is held in memory."""
CIFAR_SIZE = 32
"""Views of at most this many pixels get the CIFAR stem."""


def resolve(config: Config, reader: BetonReader, device: torch.device, local_ranks: int = 1) -> Config:
    """The same config with every `auto` and None of data, stem, precision and threads decided.

    Args:
        config, reader, device: of the run.
        local_ranks: processes of the run on this machine, which share its cores.
    """
    own_cores = max(1, cores() // local_ranks)
    on_cpu = device.type == "cpu"
    engine, stem, precision = config.data.engine, config.model.stem, config.train.precision
    if engine == "auto":
        decoded_bytes = 3 * int((reader.heights.astype("int64") * reader.widths).sum())
        engine = "resident" if decoded_bytes <= RESIDENT_BYTES else "native"
    # other encoders have no stem of ours; "auto" says so, also where the run's config.toml is a recipe again
    if stem == "auto" and config.model.encoder == "resnet":
        stem = "cifar" if config.views.size <= CIFAR_SIZE else "imagenet"
    if precision == "auto":
        precision = "bfloat16" if has_bfloat16(device) else "float32"
    # a CPU's training step takes far longer than its views: one thread keeps up, more would disturb it
    loader_threads = config.data.threads or (1 if on_cpu else own_cores)
    # a step's threads wait for each other: one that shares its core with the loader would hold all of them up
    step_threads = config.train.threads or (
        own_cores - loader_threads if on_cpu and own_cores > 2 else own_cores
    )
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, engine=engine, threads=loader_threads),
        model=dataclasses.replace(config.model, stem=stem),
        train=dataclasses.replace(
            config.train,
            precision=precision,
            device=device.type if local_ranks > 1 else str(device),  # each rank has a GPU of its own
            threads=max(1, step_threads),
        ),
    )


def check_batch(config: TrainConfig, reader: BetonReader, ranks: Ranks) -> None:
    """Raise a ValueError if the batch is larger than the data, or can't be cut into what the config wants."""
    batch_size = config.batch_size
    if batch_size > len(reader):
        raise ValueError(
            f"{reader.path} holds {len(reader)} images, fewer than a batch of {batch_size}; "
            f"lower --train.batch-size"
        )
    if batch_size % ranks.world_size:
        raise ValueError(
            f"train.batch_size is {batch_size} and is shared by {ranks.world_size} ranks; make it a multiple"
        )
    per_rank = batch_size // ranks.world_size
    if config.micro_batch is not None and per_rank % config.micro_batch:
        raise ValueError(
            f"train.micro_batch is {config.micro_batch}; it must divide a rank's batch, which is {per_rank}"
        )


def check_graph(config: Config, device: torch.device, ranks: Ranks) -> None:
    """Raise a ValueError if the config wants its steps captured and they can't be."""
    reasons = {
        "a CUDA device": device.type != "cuda",
        "a single rank": ranks.world_size > 1,
        "optim.name lars": config.optim.name != "lars",  # torch's own take their rate from Python
        "no train.micro_batch": config.train.micro_batch is not None,
    }
    missing = [what for what, is_missing in reasons.items() if is_missing]
    if config.train.graph and missing:
        raise ValueError(f"train.graph needs {' and '.join(missing)}; leave it out")


def make_loader(config: Config, reader: BetonReader, ranks: Ranks, device: torch.device) -> TwoViewLoader:
    """This rank's share of the batches; the config must be resolved."""
    engine = config.data.engine
    assert engine != "auto", "the config must be resolved"
    return TwoViewLoader(
        reader,
        config.train.batch_size // ranks.world_size,
        views=config.views,
        engine=engine,
        order=config.data.order,
        num_threads=config.data.threads,
        seed=config.train.seed,
        rank=ranks.rank,
        world_size=ranks.world_size,
        device=device,
        dtype=None if config.train.precision == "bfloat16" else torch.float32,
    )


def encoder_spec(config: ModelConfig, size: int) -> tuple[str, dict[str, Any]]:
    """Name and arguments of the encoder for `make_encoder`; the stem must be resolved.

    Args:
        size: pixels of a view.
    """
    if config.encoder != "resnet":
        return config.encoder, {"size": size}
    return config.encoder, {name: getattr(config, name) for name in RESNET_SETTINGS}


def make_model(config: ModelConfig, size: int = 224) -> SimCLR:
    """Encoder and projection head with fresh weights from torch's generator; the stem must be resolved.

    Args:
        size: pixels of a view; a ResNet does not depend on it.
    """
    name, kwargs = encoder_spec(config, size)
    encoder = make_encoder(name, **kwargs)
    num_features = cast(int, encoder.num_features)
    head = projector(num_features, config.head, config.head_layers, config.head_hidden, config.head_out)
    return SimCLR(encoder, head)


def make_step(
    config: Config, model: SimCLR, optimizer: torch.optim.Optimizer, ranks: Ranks, device: torch.device
) -> EagerStep | CapturedStep:
    """What a training step calls, (views, lr) → (loss, z); the config must be resolved.

    The model's batch norms become global ones where there are several ranks; its parameters stay the same.
    """
    train = config.train
    forward = data_parallel(model, ranks, compiled=train.compile, accumulates=train.micro_batch is not None)
    autocast = partial(torch.autocast, device.type, torch.bfloat16, train.precision == "bfloat16")
    loss_of = loss_function(config.loss, ranks.group)
    eager = EagerStep(forward, loss_of, optimizer, autocast, train.micro_batch)
    return CapturedStep(eager) if train.graph else eager


def loss_function(config: LossConfig, group: dist.ProcessGroup | None = None) -> Callable[[Tensor], Tensor]:
    """The loss that the config names, of z [2n, D]; `group` are the ranks whose rows are negatives too."""
    if config.name == "nt_xent":
        return lambda z: config.scale * nt_xent(z, config.temperature, group)
    if config.name == "nt_logistic":
        return lambda z: config.scale * nt_logistic(z, config.temperature, config.semi_hard, group)
    return lambda z: config.scale * margin_triplet(z, config.margin, config.semi_hard, group)


def make_optimizer(config: OptimConfig, model: nn.Module, lr: float) -> torch.optim.Optimizer:
    """The optimizer that the config names; biases and batch norm have no weight decay in any of them."""
    params = [p for p in model.parameters() if p.requires_grad]
    if config.name == "lars":
        lars = LARS(
            params,
            lr,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            trust_coefficient=config.trust_coefficient,
            form=config.form,
            impl=config.impl,
        )
        lars.check()  # now, not in the first step, when the run folder is written
        return lars
    groups = [
        {"params": [p for p in params if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in params if p.ndim < 2], "weight_decay": 0.0},
    ]
    if config.name == "sgd":
        return torch.optim.SGD(groups, lr, momentum=config.momentum, nesterov=config.momentum > 0)
    return torch.optim.AdamW(groups, lr, betas=(0.9, 0.95))
