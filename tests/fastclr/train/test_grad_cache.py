"""GradCache: the gradient of one pass, with a part of the images in memory at a time.

Its combination with ranks is in test_ranks_train.py.
"""

import weakref

import pytest
import torch
from torch import Tensor, nn

from fastclr.loss import nt_xent
from fastclr.model import SimCLR, projector, resnet
from fastclr.train.checkpoint import load_checkpoint
from fastclr.train.grad_cache import cached_backward
from fastclr.train.pretrain import train
from fastclr.train.sinks import read_metrics

NUM_IMAGES = 12


def loss_of(z: Tensor) -> Tensor:
    return nt_xent(z, 0.2)


def model_and_views(dropout: float = 0.0) -> tuple[SimCLR, Tensor]:
    torch.manual_seed(0)
    encoder = resnet(10, 0.125, image_size=16)
    head = nn.Sequential(nn.Dropout(dropout), projector(encoder.num_features, num_layers=2, out_dim=16))
    model = SimCLR(encoder, head).double()
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            nn.init.uniform_(module.weight, 0.5, 1.5)  # a last gamma of 0 would hide the blocks behind it
            module.running_var.uniform_(0.5, 2.0)
    return model, torch.randn(2, NUM_IMAGES, 3, 16, 16, dtype=torch.float64)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    return found


def assert_same(got: dict[str, Tensor], want: dict[str, Tensor]) -> None:
    for name, tensor in want.items():
        assert (got[name] - tensor).norm() < 1e-9 * tensor.norm(), name


@pytest.mark.parametrize("micro_batch", [1, 4, 12])
def test_frozen_batch_norm_is_exact(micro_batch):
    model, views = model_and_views()
    model.eval()
    _, z = model(views.flatten(0, 1))
    loss = loss_of(z)
    loss.backward()
    want = gradients(model)
    got_loss, _, got_z = cached_backward(model, loss_of, views, micro_batch)
    assert_same(gradients(model), want)
    torch.testing.assert_close(got_loss, loss.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(got_z, z.detach(), rtol=1e-9, atol=1e-12)


def test_batch_norm_in_training_sees_micro_batches():
    """It is the gradient of one graph over all micro-batches, each normed by itself; not that of one pass."""
    model, views = model_and_views()
    reference, _ = model_and_views()
    parts = [reference(piece.flatten(0, 1))[1].unflatten(0, (2, 4)) for piece in views.split(4, dim=1)]
    loss = loss_of(torch.cat(parts, 1).flatten(0, 1))
    loss.backward()
    want = gradients(reference)

    got_loss, _, _ = cached_backward(model, loss_of, views, 4)
    got = gradients(model)
    assert_same(got, want)
    torch.testing.assert_close(got_loss, loss.detach(), rtol=1e-12, atol=0)
    # running statistics moved three times, once per micro-batch, and not again in the pass without a graph
    for (name, buffer), (_, other) in zip(model.named_buffers(), reference.named_buffers(), strict=True):
        torch.testing.assert_close(buffer, other, rtol=1e-12, atol=0)
        assert "num_batches" not in name or buffer == 3

    one_pass, _ = model_and_views()
    loss_of(one_pass(views.flatten(0, 1))[1]).backward()
    name = "encoder.conv1.weight"
    assert (gradients(one_pass)[name] - got[name]).norm() > 0.05 * got[name].norm()


def test_dropout_drops_the_same_twice():
    """Both passes must use the same dropout mask, or the gradient would be wrong.  Batch norm is frozen."""
    model, views = model_and_views(dropout=0.5)
    model.eval()
    model.projector[0].train()
    torch.manual_seed(1)
    parts = [model(piece.flatten(0, 1))[1].unflatten(0, (2, 4)) for piece in views.split(4, dim=1)]
    after = torch.get_rng_state()
    loss_of(torch.cat(parts, 1).flatten(0, 1)).backward()
    want = gradients(model)
    torch.manual_seed(1)
    cached_backward(model, loss_of, views, 4)
    assert_same(gradients(model), want)
    assert torch.equal(torch.get_rng_state(), after)


def test_bfloat16_keeps_the_gradient():
    """Autocast caches the weights it has cast; those of the pass without a graph must not be used again."""
    model, views = model_and_views()
    model.float().eval()
    views = views.float()

    def autocast() -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16)

    with autocast():
        _, z = model(views.flatten(0, 1))
    loss_of(z).backward()
    want = gradients(model)
    cached_backward(model, loss_of, views, 4, autocast)
    for name, tensor in gradients(model).items():
        assert (tensor - want[name]).norm() < 0.05 * want[name].norm() + 1e-6, name


def test_the_encoder_sees_channels_last():
    """The pieces are channels last, like the views of one pass over the whole batch, and are not copied."""

    class Seen(nn.Module):
        def forward(self, views):
            seen.append(views)
            return views, views.flatten(1)

    seen: list[Tensor] = []
    views = torch.arange(2.0 * 4 * 3 * 5 * 5).view(2, 4, 5, 5, 3).permute(0, 1, 4, 2, 3).requires_grad_()
    cached_backward(Seen(), loss_of, views, 2)
    assert len(seen) == 4
    assert torch.equal(seen[1], views[:, 2:].flatten(0, 1))
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x in seen)


def test_one_micro_batch_of_activations_at_a_time():
    """The first activation of a piece, which its backward pass needs, is gone when the next piece comes."""
    model, views = model_and_views()
    alive: list[weakref.ref] = []
    most = 0

    def watch(module: nn.Module, args: tuple, output: Tensor) -> None:
        nonlocal most
        if output.requires_grad:
            alive.append(weakref.ref(output))
            most = max(most, sum(ref() is not None for ref in alive))

    model.encoder.layer1.register_forward_hook(watch)
    cached_backward(model, loss_of, views, 4)
    assert (len(alive), most) == (3, 1)


@pytest.mark.parametrize("micro_batch", [0, 5, 13, 24])
def test_micro_batches_divide_the_batch(micro_batch):
    model, views = model_and_views()
    with pytest.raises(ValueError, match=f"micro-batch of {micro_batch} images does not divide the 12"):
        cached_backward(model, loss_of, views, micro_batch)


def test_the_setting_reaches_the_run(tmp_path, tiny_file, tiny_config):
    from dataclasses import replace

    def config(**values):
        return replace(tiny_config, train=replace(tiny_config.train, epochs=1, precision="float32", **values))

    for name, micro_batch in {"one": None, "whole": 20, "parts": 5}.items():
        train(config(micro_batch=micro_batch), tiny_file, tmp_path / name)
    one, whole, parts = ([r["loss"] for r in read_metrics(tmp_path / n)] for n in ("one", "whole", "parts"))
    assert whole == pytest.approx(one, rel=1e-4)  # the same step, by another way
    assert parts != pytest.approx(one, rel=1e-4)
    assert (
        load_checkpoint(tmp_path / "parts" / "last.pt")["identity"]["train.micro_batch times the ranks"] == 5
    )
    with pytest.raises(
        ValueError, match=r"train.micro_batch is 6; it must divide a rank's batch, which is 20"
    ):
        train(config(micro_batch=6), tiny_file, tmp_path / "odd")
    assert not (tmp_path / "odd").exists()
