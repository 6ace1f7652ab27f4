"""The projection head g: what stands between the representation h and the loss, and is thrown away later."""

from torch import nn

MODES = ("none", "linear", "nonlinear")


def projector(
    in_width: int,
    mode: str = "nonlinear",
    num_layers: int = 2,
    hidden_width: int | None = None,
    out_width: int = 128,
) -> nn.Module:
    """z = g(h) of Chen et al. 2020 (arXiv 2002.05709), sections 2.1 and 4.2, layer by layer as the authors' code.

    Each layer is Linear (no bias, weights N(0, 0.01²)), batch norm, and ReLU except in the last; the last batch
    norm has a gamma but no beta.  `projector(…)[:1]` is its first layer, from which v2 fine-tunes.

    Args:
        in_width: width of h.
        mode: "nonlinear" (`num_layers` layers), "linear" (one), or "none" (z is h).
        num_layers: 2 in v1, 3 in v2 and the authors' released code; only of "nonlinear".
        hidden_width: width of all layers but the last; None: that of h.
        out_width: width of z.

    Raises:
        ValueError: unknown mode, or a number below 1.

    >>> [len(layer) for layer in projector(512, num_layers=3)]
    [3, 3, 2]
    """
    if mode not in MODES:
        raise ValueError(f"projector mode {mode!r} is unknown; there are {', '.join(MODES)}")
    hidden_width = in_width if hidden_width is None else hidden_width
    if min(in_width, num_layers, hidden_width, out_width) < 1:
        raise ValueError(
            f"a projector of {num_layers} layers, widths {in_width}, {hidden_width}, {out_width}:"
            " all of these must be 1 or more"
        )
    if mode == "none":
        return nn.Identity()
    num_hidden = num_layers - 1 if mode == "nonlinear" else 0
    widths = [in_width, *[hidden_width] * num_hidden, out_width]
    return nn.Sequential(
        *(_layer(widths[i], widths[i + 1], last=i == num_hidden) for i in range(num_hidden + 1))
    )


def _layer(in_width: int, out_width: int, last: bool) -> nn.Sequential:
    linear, norm = nn.Linear(in_width, out_width, bias=False), nn.BatchNorm1d(out_width)
    nn.init.normal_(linear.weight, std=0.01)
    if last:
        norm.register_parameter("bias", None)  # BatchNorm1d has no argument for a gamma without a beta
        return nn.Sequential(linear, norm)
    return nn.Sequential(linear, norm, nn.ReLU(inplace=True))
