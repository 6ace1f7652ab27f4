"""Extracts the features of a frozen encoder, and checks that it stays unchanged.

Shape letters: N images, B images of a batch, D number of features.
"""

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from pipelines.contracts import Batch


def extract_features(
    encoder: nn.Module,
    loader: Iterable[Batch],
    *,
    device: torch.device | str = "cpu",
    autocast: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the features h of every image that the loader yields, in its order.

    The encoder runs in eval mode; afterwards it is in the mode that it had before.

    Args:
        encoder: maps [B, 3, H, W] to [B, D].
        loader: yields batches of one view (`ViewSpec.center`, `ViewSpec.crop_flip`).
        device: device of the encoder.
        autocast: dtype of the matrix products and convolutions, e.g. torch.bfloat16; None is float32.

    Returns:
        Features, float32 [N, D], and labels, int64 [N], both on the CPU.

    Raises:
        ValueError: batches of more than one view, no batch at all, or features that are not finite.

    >>> from pipelines.contracts import Batch
    >>> batch = Batch(torch.ones(1, 2, 3, 4, 4), torch.tensor([0, 1]), torch.tensor([0, 1]), epoch=0, step=0)
    >>> features, labels = extract_features(nn.Flatten(), [batch])
    >>> features.shape, labels.tolist()
    (torch.Size([2, 48]), [0, 1])
    """
    features: list[Tensor] = []
    labels: list[Tensor] = []
    for h, label in feature_batches(encoder, loader, device=device, autocast=autocast):
        features.append(h.float().cpu())
        labels.append(label)
    if not features:
        raise ValueError("no features: the loader gave no batch (drop_last=True with a batch > data set?)")
    found = torch.cat(features)
    if not found.isfinite().all():
        raise ValueError(
            "the encoder gives features that are not finite (NaN or infinite): its training failed"
        )
    return found, torch.cat(labels)


def feature_batches(
    encoder: nn.Module,
    loader: Iterable[Batch],
    *,
    device: torch.device | str = "cpu",
    autocast: torch.dtype | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the features [B, D] of each batch, on the device, and its labels [B], on the CPU.

    Arguments and errors are those of `extract_features`.
    """
    with eval_mode(encoder):
        for batch in loader:
            if len(batch.views) != 1:
                raise ValueError(
                    f"features need one view per image, the loader gives {len(batch.views)}: "
                    "make it with ViewSpec.center(size) or ViewSpec.crop_flip(size)"
                )
            view = batch.views[0].to(device, non_blocking=True)
            # no_grad inside the loop, because a suspended generator must not change its caller's grad mode
            with torch.no_grad(), torch.autocast(view.device.type, autocast, enabled=autocast is not None):
                h = encoder(view)
            yield h.float(), batch.labels.cpu()


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Put the module into eval mode inside the block; afterwards every submodule has its former mode."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def state_digest(module: nn.Module) -> str:
    """Return the SHA-256 of the names and bytes of all weights and buffers; it is equal iff nothing has changed.

    >>> layer = nn.BatchNorm1d(2)
    >>> before = state_digest(layer)
    >>> _ = layer(torch.randn(4, 2))  # in training mode the running statistics move
    >>> state_digest(layer) == before
    False
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict(keep_vars=True).items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@contextmanager
def assert_unchanged(module: nn.Module) -> Iterator[None]:
    """Assert that no weight and no buffer of the module changes inside the block."""
    before = state_digest(module)
    yield
    assert state_digest(module) == before, "the encoder's weights or buffers changed while it was evaluated"
