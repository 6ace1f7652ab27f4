import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastclr.model import projector


@pytest.mark.parametrize("num_layers", [1, 2, 3, 5])
@pytest.mark.parametrize("hidden_dim", [None, 24])
def test_nonlinear_written_out(num_layers: int, hidden_dim: int | None) -> None:
    torch.manual_seed(0)
    head = projector(16, "nonlinear", num_layers, hidden_dim, out_dim=8).double()
    for p in head.parameters():
        nn.init.uniform_(p, 0.5, 1.5) if p.ndim == 1 else nn.init.normal_(p)
    h = torch.randn(6, 16, dtype=torch.float64)

    x = h
    widths = [16] + [hidden_dim or 16] * (num_layers - 1) + [8]
    for i, layer in enumerate(head):
        assert layer[0].weight.shape == (widths[i + 1], widths[i])
        x = x @ layer[0].weight.T
        x = (x - x.mean(0)) / (x.var(0, correction=0) + 1e-5).sqrt() * layer[1].weight
        if i < num_layers - 1:
            x = (x + layer[1].bias).clamp_min(0)
    torch.testing.assert_close(head(h), x)
    assert len(head) == num_layers


def test_linear_is_one_layer_without_beta() -> None:
    head = projector(16, "linear", num_layers=3, out_dim=8)
    assert [name for name, _ in head.named_parameters()] == ["0.0.weight", "0.1.weight"]
    h = torch.randn(5, 16)
    want = F.batch_norm(h @ head[0][0].weight.T, None, None, head[0][1].weight, training=True)
    torch.testing.assert_close(head(h), want)


def test_none_passes_h_through() -> None:
    h = torch.randn(5, 16)
    head = projector(16, "none")
    assert head(h) is h
    assert list(head.parameters()) == []


def test_parameters_and_initialisation() -> None:
    torch.manual_seed(0)
    head = projector(512, num_layers=3, out_dim=128)
    # biases nowhere but in the hidden batch norms: no linear layer has one, nor the last batch norm
    assert [name for name, _ in head.named_parameters() if "bias" in name] == ["0.1.bias", "1.1.bias"]
    for layer in head:
        weight = layer[0].weight.detach()
        assert float(weight.std()) == pytest.approx(0.01, rel=0.02)
        assert abs(float(weight.mean())) < 2e-4
        assert torch.equal(layer[1].weight, torch.ones_like(layer[1].weight))
    # a fresh head's z is centred and of unit variance in each of its columns
    z = head(torch.randn(64, 512))
    torch.testing.assert_close(z.mean(0), torch.zeros(128), rtol=0, atol=1e-5)
    torch.testing.assert_close(z.var(0, correction=0), torch.ones(128), rtol=0, atol=0.05)


def test_autocast() -> None:
    torch.manual_seed(0)
    head = projector(32)
    h = torch.randn(8, 32)
    with torch.autocast("cpu", torch.bfloat16):
        z = head(h)
    assert z.dtype == torch.bfloat16
    torch.testing.assert_close(z.float(), head(h), rtol=0.1, atol=0.1)


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="head 'mlp' is unknown; there are none, linear, nonlinear"):
        projector(16, "mlp")
    with pytest.raises(ValueError, match="0 layers"):
        projector(16, num_layers=0)
