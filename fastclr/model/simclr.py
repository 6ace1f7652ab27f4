"""SimCLR: an encoder and a projection head."""

from torch import Tensor, nn


class SimCLR(nn.Module):
    """Chen et al. 2020 (arXiv 2002.05709), figure 2: h = f(x), z = g(h).

    h is the representation that other tasks use; z only feeds the loss.

    Args:
        encoder: f, images [B, 3, H, W] → h [B, features].
        projector: g, h → z [B, D].

    Both views go through in one batch, view 0 first, so that batch norms see them together:

    >>> import torch
    >>> from fastclr.model import projector, resnet
    >>> encoder = resnet(18, image_size=32)
    >>> model = SimCLR(encoder, projector(encoder.num_features))
    >>> views = torch.randn(2, 4, 3, 32, 32)                    # [V, B, 3, H, W]
    >>> h, z = model(views.flatten(0, 1))
    >>> h.shape, z.shape
    (torch.Size([8, 512]), torch.Size([8, 128]))
    """

    def __init__(self, encoder: nn.Module, projector: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.projector = projector

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.encoder(x)
        return h, self.projector(h)
