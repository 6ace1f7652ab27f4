"""GradCache: the gradient of a large batch in the memory of a small one (Gao et al. 2021, arXiv 2101.06983).

A contrastive loss needs all z at once, but each z depends on the other images only through batch norm's statistics.  So
the encoder can process the batch in pieces: first without a graph, to get z; then the loss of all z gives dL/dz; then
each piece again, with a graph, through which its rows of dL/dz are propagated back before it is freed.  This costs one
more forward pass, and saves the activations of all pieces but one.

Legend: V views, B images of this rank, b images of a micro-batch, D width of z.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel


def cached_backward(
    forward: nn.Module,
    loss_of: Callable[[Tensor], Tensor],
    views: Tensor,
    micro_batch: int,
    autocast: Callable[[], AbstractContextManager] = nullcontext,
) -> tuple[Tensor, Tensor, Tensor]:
    """Add the weight gradients of `loss_of(z)` to the parameters, with `micro_batch` images at a time.

    With frozen batch norm (eval mode) the gradient equals that of one pass over the whole batch.  In training, batch
    norm takes its statistics from a micro-batch (both views, all ranks) instead of the whole batch: exact statistics
    would need the activations of all images in every layer at once, the very memory to be saved.  Both passes see the
    same micro-batch, hence the same statistics, and the gradient is exactly that of the returned loss.  Running
    statistics are updated in the second pass only, once per micro-batch.

    Args:
        forward: views [V·b, 3, H, W], view 0 first → (h, z [V·b, D]); under DDP gradients are averaged over ranks,
            with the last micro-batch.
        loss_of: z [V·B, D], view 0 first → a 0-dim loss; over all ranks if it has a group.
        views: [V, B, 3, H, W].
        micro_batch: b, which divides B.
        autocast: makes the context of a forward pass.

    Returns:
        The loss, the features h [V·B, …] of the first pass and z [V·B, D]; all without a graph.

    Raises:
        ValueError: a micro-batch that does not divide the batch.
    """
    num_views, batch_size = views.shape[:2]
    if not 1 <= micro_batch <= batch_size or batch_size % micro_batch:
        raise ValueError(f"a micro-batch of {micro_batch} images does not divide the {batch_size} of a rank")
    pieces = views.split(micro_batch, dim=1)

    random_states, features, parts = [], [], []
    with torch.no_grad(), _running_statistics_kept(forward):
        for piece in pieces:
            random_states.append(_random_state(views.device))
            with autocast():  # a context of its own, because its cached casts of weights have no graph
                h, z = forward(_flat(piece))
                features.append(h.unflatten(0, (num_views, -1)))
                parts.append(z.unflatten(0, (num_views, -1)))
        after = _random_state(views.device)
    z = torch.cat(parts, 1).flatten(0, 1).requires_grad_()
    loss = loss_of(z)
    (dz,) = torch.autograd.grad(loss, z)

    grads = dz.unflatten(0, (num_views, batch_size)).split(micro_batch, dim=1)
    for number, (piece, grad, state) in enumerate(zip(pieces, grads, random_states, strict=True), 1):
        _set_random_state(views.device, state)  # so that dropout drops the same units again
        with nullcontext() if number == len(pieces) else _no_sync(forward):
            with autocast():
                _, z_again = forward(_flat(piece))
            z_again.backward(grad.flatten(0, 1))
    _set_random_state(views.device, after)
    return loss.detach(), torch.cat(features, 1).flatten(0, 1), z.detach()


def _flat(piece: Tensor) -> Tensor:
    """Flatten [V, b, 3, H, W] to [V·b, 3, H, W], channels last; a plain flatten would copy it to channels first."""
    return piece.permute(0, 1, 3, 4, 2).flatten(0, 1).permute(0, 3, 1, 2)


def _no_sync(forward: nn.Module) -> AbstractContextManager:
    """Return a context in which gradients stay on this rank and add up."""
    return forward.no_sync() if isinstance(forward, DistributedDataParallel) else nullcontext()


@contextmanager
def _running_statistics_kept(model: nn.Module) -> Iterator[None]:
    """Let batch norms in training use the batch's statistics without updating the running ones."""
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.training and m.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


def _random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def _set_random_state(device: torch.device, state: tuple[Tensor, Tensor | None]) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)
