import math

import pytest
import torch

from fastclr.loss import contrastive_metrics, nt_xent
from fastclr.model import SimCLR, projector, resnet
from fastclr.optim import LARS, warmup_cosine


def model(mode: str = "nonlinear") -> SimCLR:
    torch.manual_seed(0)
    encoder = resnet(10, width=0.125, image_size=32)
    return SimCLR(encoder, projector(encoder.num_features, mode, out_dim=16))


def test_h_is_what_the_encoder_says_and_z_what_the_head_makes_of_it() -> None:
    simclr = model().eval()
    x = torch.randn(4, 3, 32, 32)
    h, z = simclr(x)
    assert h.shape == (4, 64)
    assert z.shape == (4, 16)
    assert torch.equal(h, simclr.encoder(x))
    assert torch.equal(z, simclr.projector(h))


def test_batch_norms_see_both_views() -> None:
    """The views in one batch are normalised together: another second view changes the first's z."""
    simclr = model()
    generator = torch.Generator().manual_seed(0)
    views = torch.randn(2, 4, 3, 32, 32, generator=generator)
    with torch.no_grad():
        _, z = simclr(views.flatten(0, 1))
        _, z_other = simclr(torch.stack([views[0], 3 * views[1] + 1]).flatten(0, 1))
    assert float((z[:4] - z_other[:4]).norm()) > 0.1 * float(z[:4].norm())


@pytest.mark.parametrize("mode", ["nonlinear", "linear", "none"])
def test_names_of_the_encoder_are_torchvisions_under_a_prefix(mode: str) -> None:
    names = [name for name in model(mode).state_dict() if not name.startswith("projector.")]
    assert "encoder.layer4.0.conv2.weight" in names
    assert all(name.startswith("encoder.") for name in names)


def test_learns_to_tell_images_apart() -> None:
    """Encoder, head, loss and LARS together: 16 noisy images, found again in their second view."""
    simclr = model()
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(1, 16, 3, 8, 8, generator=generator)
    optimizer = LARS(simclr.parameters(), lr=0.0, weight_decay=1e-6)

    def views() -> torch.Tensor:
        return (images + 0.7 * torch.randn(2, 16, 3, 8, 8, generator=generator)).flatten(0, 1)

    with torch.no_grad():
        before = contrastive_metrics(simclr(views())[1], 0.5)
    losses = []
    for step in range(60):
        optimizer.param_groups[0]["lr"] = warmup_cosine(step, 60, 5, peak=2.0)
        _, z = simclr(views())
        loss = nt_xent(z, 0.5)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    after = contrastive_metrics(simclr(views())[1].detach(), 0.5)
    assert losses[0] == pytest.approx(math.log(31), rel=0.25)
    assert losses[-1] < 0.75 * losses[0]
    assert float(after.accuracy) > max(0.8, float(before.accuracy))
    assert float(after.entropy) < float(before.entropy)
