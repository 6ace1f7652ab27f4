"""Builds the parts of a run from its config: resolves `auto`, checks, and makes loader, model and optimizer."""

import copy
import dataclasses
import itertools
from functools import partial
from typing import Any, TypeVar, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from fastclr.config import RESNET_SETTINGS, Config, ModelConfig, OptimConfig, TrainConfig
from fastclr.device import has_bfloat16
from fastclr.model import SimCLR, check_image_size, make_encoder, projector, whiten
from fastclr.optim import LARS, Muon, scaled_lr
from fastclr.schedule import epoch_share, num_loader_epochs
from fastclr.train.distributed import Ranks
from pipelines import BetonReader, TwoViewLoader
from pipelines.system.cpus import cores
from pipelines.system.memory import available_memory
from pipelines.views import ViewSpec, groups_of

AnyConfig = TypeVar("AnyConfig", bound=Config)

RESIDENT_BYTES = 1 << 30
"""Decoded data sets of up to this many bytes are held in memory: little beside what a training step takes."""
CIFAR_SIZE = 32
"""Views of at most this many pixels get the CIFAR stem."""
STEM_STRIDES = {"cifar": 1, "stride2": 2, "whitened": 2, "imagenet": 4}
"""Stride of a ResNet's stem; stages of stride 2 follow, two before the last of four.

Symptom where the last stage gets one pixel: some weight gradients of its convolution of stride 2 are what was in that
memory before, now and then NaN (oneDNN, bfloat16, seen in torch 2.15).  To be lifted when they are right.
"""
MAX_COMPILED = 8
"""Maximum number of forms of the model that torch.compile makes (`torch._dynamo.config.recompile_limit`)."""
BATCHES = 4
"""Batches of views in memory at a time: one that is trained on, one that is being made, two that wait."""
WHITENING_IMAGES = 1024
"""Images whose patches the stem "whitened" is computed from: a hundred thousand patches of 24 px views."""
COPIES = 4
"""Memory per weight, in copies of it: itself, its gradient, its momentum, and as much for temporary memory."""


def resolve(config: Config, reader: BetonReader, device: torch.device, local_ranks: int = 1) -> Config:
    """Return the config with a decision for every `auto` and None of data, stem, precision and threads.

    Args:
        config, reader, device: those of the run.
        local_ranks: processes of the run on this machine, which share its cores.

    Raises:
        ValueError: views that SimCLR can't train on, see `check_views`.
    """
    check_views(config)
    return resolve_machine(config, reader, device, local_ranks)


def resolve_machine(
    config: AnyConfig, reader: BetonReader, device: torch.device, local_ranks: int = 1
) -> AnyConfig:
    """Do what `resolve` does, for any task: without a look at the views."""
    own_cores = max(1, cores() // local_ranks)
    on_cpu = device.type == "cpu"
    engine, stem, precision = config.data.engine, config.model.stem, config.train.precision
    if engine == "auto":
        decoded_bytes = 3 * int((reader.heights.astype("int64") * reader.widths).sum())
        engine = "resident" if decoded_bytes <= RESIDENT_BYTES else "native"
    # other encoders have no stem to choose: "auto" stays, so that the run's config.toml can serve as a recipe
    if stem == "auto" and config.model.encoder == "resnet":
        stem = "cifar" if config.view_size <= CIFAR_SIZE else "imagenet"
    if precision == "auto":
        precision = "bfloat16" if has_bfloat16(device) else "float32"
    # on a CPU a training step takes far longer than its views: one loader thread keeps up, more would disturb it
    loader_threads = config.data.threads or (1 if on_cpu else own_cores)
    # the threads of a step wait for each other: one that shares its core with the loader would delay them all
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


def check_views(config: Config) -> None:
    """Raise a ValueError unless an image has two views of one size, be they of one spec or of two."""
    groups = groups_of(config.view_specs)
    if [group.num_views for group in groups] != [2]:
        given = " and ".join(
            f"{g.num_views} view{'' if g.num_views == 1 else 's'} of {g.size} px" for g in groups
        )
        raise ValueError(
            f"the recipe has {given} per image, but SimCLR contrasts two views of one size; set "
            "views.num_views = 2, or 1 in each of two [[views]] (for multi-crop methods, write a loop with "
            "pipelines.ViewLoader)"
        )


def check_batch(config: TrainConfig, reader: BetonReader, ranks: Ranks, num_images: int) -> None:
    """Raise a ValueError if the batch is larger than the data, or can't be split among ranks and micro-batches.

    Args:
        num_images: images of the file that the run trains on.
    """
    batch_size = config.batch_size
    if batch_size > num_images:
        some = "" if num_images == len(reader) else f", of which {num_images} are chosen"
        raise ValueError(
            f"{reader.path} holds {len(reader)} images{some}, fewer than a batch of {batch_size}; "
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
    """Raise a ValueError if `train.graph` is set but the steps of this run can't be captured."""
    reasons = {
        "a CUDA device": device.type != "cuda",
        "a single rank": ranks.world_size > 1,
        "optim.name lars": config.optim.name != "lars",  # torch's optimizers read their rate in Python
        "no train.micro_batch": config.train.micro_batch is not None,
        # captured numbers are constants, and a new one in every step would be a new capture in every step
        "settings of the loss scheduled in steps": any(
            each.name.startswith("loss.") and each.kind != "steps" for each in config.schedule
        ),
    }
    missing = [what for what, is_missing in reasons.items() if is_missing]
    if config.train.graph and missing:
        raise ValueError(f"train.graph needs {' and '.join(missing)}; leave it out")


def check_sizes(config: Config, encoder: nn.Module, num_images: int) -> None:
    """Raise a ValueError unless the encoder can be trained on all sizes of the views, and takes that of evaluations.

    Args:
        config: resolved.
        encoder: left as it is.
        num_images: images of the training file.
    """
    sizes = view_sizes(config, num_images)
    # GradCache has a pass without gradients, for which the model is compiled, too
    forms = len(sizes) * (1 if config.train.micro_batch is None else 2)
    if config.train.compile and forms > MAX_COMPILED:
        raise ValueError(
            f"the schedule has {len(sizes)} sizes of views, and train.compile compiles the model anew for each, at "
            f"most {MAX_COMPILED} times; raise multiple_of, or leave out train.compile"
        )
    # the largest size of view of which one pixel is left: the first stage has no stride
    one_pixel = STEM_STRIDES.get(config.model.stem, 1) * 2 ** (config.model.stages - 2)
    on_cpu, half = config.train.device == "cpu", config.train.precision == "bfloat16"
    if config.model.encoder == "resnet" and on_cpu and half and min(sizes) <= one_pixel:
        raise ValueError(
            f"views of {min(sizes)} px leave one pixel for the last stage of this ResNet, and torch computes a wrong "
            f"gradient there in bfloat16 on a CPU; take more than {one_pixel} px, or train.precision float32"
        )
    # a ResNet takes any size, and others have been tried with views.size
    if config.model.encoder != "resnet":
        for size in sorted({*sizes, config.eval_size} - {config.view_size}):
            check_image_size(encoder, config.model.encoder, size)


def check_memory(config: Config, model: nn.Module, local_ranks: int = 1, world_size: int = 1) -> None:
    """Raise a ValueError if a step on this CPU would need more memory than there is.

    Without this check the system would kill the process without a message, perhaps minutes into the run.

    Args:
        config: resolved.
        model: on the CPU, with views [B, 3, H, W] as input; stays as it is.  Of a schedule the largest size counts.
        local_ranks: processes of the run on this machine, which share its memory.
        world_size: processes of the run in all, which share a batch.
    """
    batch_size, size = config.train.batch_size // world_size, config.view_size
    at_once = config.train.micro_batch or batch_size
    kept = activation_bytes(model, size, config.train.precision == "bfloat16")
    weights = sum(p.nbytes for p in model.parameters())
    views_per_image = sum(spec.num_views for spec in config.view_specs)
    views = views_per_image * batch_size * 3 * size**2 * 4
    needed = views_per_image * at_once * kept + BATCHES * views + COPIES * weights
    available = available_memory() // local_ranks
    if needed > available:
        raise ValueError(
            f"a step of {batch_size} images of {size} px needs about {needed / 2**30:.0f} GiB of memory, "
            f"{available / 2**30:.0f} GiB are available; lower --train.batch-size, or take a recipe for CPUs "
            "(cifar10-cpu)"
        )


def activation_bytes(model: nn.Module, size: int, bfloat16: bool = False) -> int:
    """Return the bytes per view that a forward pass keeps for the backward pass, without weights (two are tried)."""
    model = copy.deepcopy(model).train()
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    views = torch.zeros(2, 3, size, size).contiguous(memory_format=torch.channels_last)
    with (
        torch.autocast("cpu", torch.bfloat16, bfloat16),
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
    ):
        _ = model(views)  # the graph keeps the memory alive, so that no address is reused
    return sum(kept.values()) // 2


def views_of_epoch(config: Config, num_images: int, epoch: int) -> tuple[ViewSpec, ...]:
    """Return the views of an epoch of the loader, those of the middle of the epoch; the same on every rank.

    Args:
        num_images: images of the training file.
        epoch: number of the epoch, from 0.
    """
    return config.views_at(epoch_share(epoch, num_images, config.train.epochs, config.train.batch_size))


def view_sizes(config: Config, num_images: int) -> list[int]:
    """Return the sizes of the views in a run, pixels, in the order in which they appear, without repetitions."""
    epochs = num_loader_epochs(num_images, config.train.epochs, config.train.batch_size)
    if not any(each.name == "views.size" for each in config.schedule):
        return [config.view_size]
    return list(dict.fromkeys(views_of_epoch(config, num_images, epoch)[0].size for epoch in range(epochs)))


def make_loader(
    config: Config,
    reader: BetonReader,
    ranks: Ranks,
    device: torch.device,
    indices: np.ndarray | None = None,
) -> TwoViewLoader:
    """Return the loader of this rank's share of the batches of all images, or of those in `indices`."""
    engine = config.data.engine
    assert engine != "auto", "the config must be resolved"
    scheduled = any(each.name.startswith("views") for each in config.schedule)
    return TwoViewLoader(
        reader,
        config.train.batch_size // ranks.world_size,
        views=partial(views_of_epoch, config, len(reader)) if scheduled else config.view_specs,
        engine=engine,
        order=config.data.order,
        num_threads=config.data.threads,
        seed=config.train.seed,
        rank=ranks.rank,
        world_size=ranks.world_size,
        device=device,
        dtype=None if config.train.precision == "bfloat16" else torch.float32,
        indices=indices,
    )


def encoder_spec(config: ModelConfig, size: int) -> tuple[str, dict[str, Any]]:
    """Return name and arguments of the encoder for `make_encoder`; the stem must be resolved.

    Args:
        size: pixels of a view.
    """
    if config.encoder != "resnet":
        return config.encoder, {"size": size}
    return config.encoder, {name: getattr(config, name) for name in RESNET_SETTINGS}


def make_model(config: ModelConfig, size: int = 224) -> SimCLR:
    """Make encoder and projection head with fresh weights from torch's generator; the stem must be resolved.

    Args:
        size: pixels of a view; a ResNet does not depend on it.
    """
    name, kwargs = encoder_spec(config, size)
    encoder = make_encoder(name, **kwargs)
    return SimCLR(encoder, projector(**projector_kwargs(config, encoder)))


def projector_kwargs(config: ModelConfig, encoder: nn.Module) -> dict[str, Any]:
    """Return the arguments of `projector` for the head that the config describes."""
    return {
        "in_dim": cast(int, encoder.num_features),
        "head": config.head,
        "num_layers": config.head_layers,
        "hidden_dim": config.proj_hidden_dim,
        "out_dim": config.proj_dim,
    }


def whiten_stem(config: Config, reader: BetonReader, model: SimCLR, ranks: Ranks) -> None:
    """Compute the first layer of a model with the stem "whitened" from crops of the images; else do nothing.

    Every rank looks at the same images, and takes the result of rank 0.
    """
    if config.model.encoder != "resnet" or config.model.stem != "whitened":
        return
    spec = config.view_specs[0]
    crops = ViewSpec.crop_flip(spec.size, scale=spec.scale, ratio=spec.ratio, mean=spec.mean, std=spec.std)
    batch_size = min(256, len(reader))
    # a seed of its own: the draws of two loaders of one seed coincide
    seed = (config.train.seed + 1) % 2**64
    settings: dict[str, Any] = {"num_threads": config.data.threads, "seed": seed, "rank": 0, "world_size": 1}
    with TwoViewLoader(reader, batch_size, views=crops, **settings) as loader:
        batches = itertools.islice(loader, max(1, WHITENING_IMAGES // batch_size))
        images = torch.cat([batch.views[0] for batch in batches])
    whiten(model.encoder, images)
    if ranks.world_size > 1:
        dist.broadcast(model.encoder.get_parameter("conv1.weight").data, src=0)


def peak_lr(config: Config) -> float:
    """Return the learning rate after the warm-up."""
    return scaled_lr(config.optim.base_lr, config.train.batch_size, config.optim.scaling)


def make_optimizer(config: OptimConfig, model: nn.Module, lr: float) -> torch.optim.Optimizer:
    """Make the optimizer that the config names; biases and batch norm have no weight decay in any of them."""
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
        # raise now, not in the first step, when the run folder has been written
        lars.check()
        return lars
    if config.name == "muon":
        return Muon(
            params,
            lr,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            trust_coefficient=config.trust_coefficient,
            impl=config.impl,
        )
    groups = [
        {"params": [p for p in params if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in params if p.ndim < 2], "weight_decay": 0.0},
    ]
    if config.name == "sgd":
        return torch.optim.SGD(groups, lr, momentum=config.momentum, nesterov=config.momentum > 0)
    return torch.optim.AdamW(groups, lr, betas=(0.9, 0.95))


def encoder_meta(config: Config) -> dict[str, Any]:
    """Return the metadata that rebuild the encoder of a run and make its images; the config must be resolved."""
    name, kwargs = encoder_spec(config.model, config.view_size)
    spec = config.view_specs[0]
    return {
        "encoder": name,
        "kwargs": kwargs,
        "size": config.eval_size,
        "mean": spec.mean,
        "std": spec.std,
        "precision": config.train.precision,
    }
