"""The projection head g, which maps the representation h to z for the loss and is dropped after the training."""

from torch import nn

from pipelines.system.renamed import accept_old_arguments

HEADS = ("none", "linear", "nonlinear")


@accept_old_arguments(
    "projector",
    {"in_width": "in_dim", "mode": "head", "hidden_width": "hidden_dim", "out_width": "out_dim"},
)
def projector(
    in_dim: int,
    head: str = "nonlinear",
    num_layers: int = 2,
    hidden_dim: int | None = None,
    out_dim: int = 128,
) -> nn.Module:
    """Make g, where z = g(h), of Chen et al. 2020 (arXiv 2002.05709), sections 2.1 and 4.2, as in the authors' code.

    Each layer is Linear (no bias, weights N(0, 0.01²)), batch norm, and ReLU except in the last; the last batch
    norm has a gamma but no beta.  `projector(…)[:1]` is its first layer, from which v2 fine-tunes.

    Args:
        in_dim: D of h.
        head: "nonlinear" (`num_layers` layers), "linear" (one), or "none" (z is h).
        num_layers: layers of "nonlinear": 2 in v1, 3 in v2 and the authors' released code.
        hidden_dim: outputs of all layers but the last; None: in_dim.
        out_dim: D of z.

    Raises:
        ValueError: unknown head, or a number below 1.

    >>> [len(layer) for layer in projector(512, num_layers=3)]
    [3, 3, 2]
    """
    if head not in HEADS:
        raise ValueError(f"projection head {head!r} is unknown; there are {', '.join(HEADS)}")
    hidden_dim = in_dim if hidden_dim is None else hidden_dim
    if min(in_dim, num_layers, hidden_dim, out_dim) < 1:
        raise ValueError(
            f"a projector of {num_layers} layers, dimensions {in_dim}, {hidden_dim}, {out_dim}:"
            " all of these must be 1 or more"
        )
    if head == "none":
        return nn.Identity()
    num_hidden = num_layers - 1 if head == "nonlinear" else 0
    dims = [in_dim, *[hidden_dim] * num_hidden, out_dim]
    return nn.Sequential(*(_layer(dims[i], dims[i + 1], last=i == num_hidden) for i in range(num_hidden + 1)))


def _layer(in_dim: int, out_dim: int, last: bool) -> nn.Sequential:
    linear, norm = nn.Linear(in_dim, out_dim, bias=False), nn.BatchNorm1d(out_dim)
    nn.init.normal_(linear.weight, std=0.01)
    if last:
        norm.register_parameter("bias", None)  # BatchNorm1d has no argument for a gamma without a beta
        return nn.Sequential(linear, norm)
    return nn.Sequential(linear, norm, nn.ReLU(inplace=True))
