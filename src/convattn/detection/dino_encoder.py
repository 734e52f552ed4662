"""DINO's encoder: the pixels of all levels look at one another by deformable attention.

Source: "DINO", Zhang et al., ICLR 2023, arXiv 2203.03605, section 3; the layers are Deformable DETR's,
arXiv 2010.04159.
"""

from collections.abc import Sequence

import torch
from timm.layers import Mlp
from torch import Tensor, nn

from convattn.detection.multi_scale_attention import MultiScaleAttention

__all__ = ["Encoder", "pixel_references"]


class EncoderLayer(nn.Module):
    """Attention and two linear layers, each added to its input and normalised."""

    def __init__(self, dim: int, heads: int, levels: int, points: int, hidden: int):
        super().__init__()
        self.attention = MultiScaleAttention(dim, heads, levels, points)
        self.norm1 = nn.LayerNorm(dim)
        self.ffn = Mlp(dim, hidden, act_layer=nn.ReLU)
        self.norm2 = nn.LayerNorm(dim)

    def forward(
        self,
        x: Tensor,
        position: Tensor,
        references: Tensor,
        sizes: Sequence[tuple[int, int]],
        padding: Tensor | None,
    ) -> Tensor:
        x = self.norm1(x + self.attention(x, position, x, references, sizes, padding))
        return self.norm2(x + self.ffn(x))


class Encoder(nn.Module):
    """Layers one behind the other; (B, pixels, dim) -> the same.

    Args:
        layers: how many.
        dim: channels.
        heads, levels, points: of the attention.
        hidden: channels between the two linear layers.
    """

    def __init__(self, layers: int, dim: int, heads: int, levels: int, points: int, hidden: int):
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(dim, heads, levels, points, hidden) for _ in range(layers))

    def forward(
        self,
        pixels: Tensor,
        position: Tensor,
        references: Tensor,
        sizes: Sequence[tuple[int, int]],
        padding: Tensor | None,
    ) -> Tensor:
        """What each pixel becomes.

        Args:
            pixels: of all levels, (B, Σ h·w, dim).
            position: added anew in each layer where pixels choose places, of the same shape.
            references: as `pixel_references` gives them.
            sizes: height and width of each level.
            padding: true for pixels of no image, (B, Σ h·w).
        """
        for layer in self.layers:
            pixels = layer(pixels, position, references, sizes, padding)
        return pixels


def pixel_references(sizes: Sequence[tuple[int, int]], ratios: Tensor) -> Tensor:
    """Where each pixel lies in its image, as a place on every level, (B, Σ h·w, levels, 2).

    Args:
        sizes: height and width of each level.
        ratios: how much of each level is image, (B, levels, 2), width first.
    """
    places = []
    for level, (height, width) in enumerate(sizes):
        y = (torch.arange(height, dtype=ratios.dtype, device=ratios.device) + 0.5) / height
        x = (torch.arange(width, dtype=ratios.dtype, device=ratios.device) + 0.5) / width
        grid = torch.stack([x.expand(height, width), y[:, None].expand(height, width)], -1).flatten(0, 1)
        places.append(grid / ratios[:, None, level])
    return torch.cat(places, 1)[:, :, None] * ratios[:, None]
