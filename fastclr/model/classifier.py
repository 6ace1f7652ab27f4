"""Classifier: an encoder, perhaps the first layers of its projection head, and a linear layer, to be fine-tuned."""

from collections.abc import Sequence
from typing import Self, cast

import torch
from torch import Tensor, nn


class Classifier(nn.Module):
    """Logits of images, from h or from a layer of the projection head.

    SimCLR v2 (arXiv 2006.10029), section 2: fine-tuning "from a middle layer of the projection head" makes the head's
    first layers part of the network.  The weights of the last layer are N(0, 0.01²), its biases 0, as in the authors'
    code.

    Args:
        encoder: images [B, 3, H, W] → h [B, num_features].
        layers: the first layers of a projector that `fastclr.model.projector` made; none: from h.
        num_classes: C.
        head_only: encoder and layers stay as they are, including the statistics of their batch norms.

    >>> from fastclr.model import projector, resnet
    >>> encoder = resnet(18, width=0.25, image_size=32)
    >>> model = Classifier(encoder, projector(encoder.num_features, num_layers=3)[:1], num_classes=10)
    >>> model(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self, encoder: nn.Module, layers: Sequence[nn.Module], num_classes: int, head_only: bool = False
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.layers = nn.Sequential(*layers)
        # a layer is Linear, batch norm and perhaps ReLU
        width = layers[-1][0].out_features if layers else encoder.num_features  # type: ignore[index]
        self.fc = nn.Linear(cast(int, width), num_classes)
        nn.init.normal_(self.fc.weight, std=0.01)
        nn.init.zeros_(self.fc.bias)
        self.head_only = head_only
        for parameter in [*encoder.parameters(), *self.layers.parameters()] if head_only else []:
            parameter.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.head_only):
            features = self.layers(self.encoder(x))
        return cast(Tensor, self.fc(features))

    def train(self, mode: bool = True) -> Self:
        """Set the mode; with `head_only` the encoder and the layers stay in evaluation mode."""
        super().train(mode)
        if self.head_only:
            self.encoder.eval()
            self.layers.eval()
        return self
