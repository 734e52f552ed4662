"""DINO's decoder: queries with boxes look at one another, then at the image, and move their boxes, layer by layer.

Source: "DINO", Zhang et al., ICLR 2023, arXiv 2203.03605, sections 3.2 (look forward twice) and 3.4.
"""

from collections.abc import Sequence

import torch
from timm.layers import Mlp
from torch import Tensor, nn
from torchvision.ops import MLP

from convattn.detection.multi_scale_attention import MultiScaleAttention
from convattn.detection.positions import box_positions, inverse_sigmoid

__all__ = ["Decoder"]


class DecoderLayer(nn.Module):
    """Attention among queries, attention to the image, two linear layers; each is added to its input and normalised."""

    def __init__(self, dim: int, heads: int, levels: int, points: int, hidden: int):
        super().__init__()
        self.self_attention = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.norm1 = nn.LayerNorm(dim)
        self.cross_attention = MultiScaleAttention(dim, heads, levels, points)
        self.norm2 = nn.LayerNorm(dim)
        self.ffn = Mlp(dim, hidden, act_layer=nn.ReLU)
        self.norm3 = nn.LayerNorm(dim)

    def forward(
        self,
        x: Tensor,
        position: Tensor,
        memory: Tensor,
        references: Tensor,
        sizes: Sequence[tuple[int, int]],
        padding: Tensor | None,
        blocked: Tensor | None,
    ) -> Tensor:
        seen = x + position
        mixed, _ = self.self_attention(seen, seen, x, attn_mask=blocked, need_weights=False)
        x = self.norm1(x + mixed)
        x = self.norm2(x + self.cross_attention(x, position, memory, references, sizes, padding))
        return self.norm3(x + self.ffn(x))


class Decoder(nn.Module):
    """Layers one behind the other, each of which moves the boxes of the queries.

    Args:
        layers: how many.
        dim: channels; half of them describe each number of a box.
        heads, levels, points: of the attention to the image.
        hidden: channels between two linear layers.
    """

    def __init__(self, layers: int, dim: int, heads: int, levels: int, points: int, hidden: int):
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(dim, heads, levels, points, hidden) for _ in range(layers))
        self.reference_head = MLP(2 * dim, [dim, dim])
        self.norm = nn.LayerNorm(dim)

    def forward(
        self,
        queries: Tensor,
        boxes: Tensor,
        memory: Tensor,
        ratios: Tensor,
        sizes: Sequence[tuple[int, int]],
        movers: Sequence[nn.Module],
        padding: Tensor | None = None,
        blocked: Tensor | None = None,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The queries behind each layer, normalised, and their boxes then, cxcywh from 0 to 1, with gradients.

        Args:
            queries: (B, n, dim).
            boxes: of the queries, cxcywh from 0 to 1, (B, n, 4).
            memory: the pixels of all levels, (B, Σ h·w, dim).
            ratios: how much of each level is image, (B, levels, 2), width first.
            sizes: height and width of each level.
            movers: a network a layer, from a query to what is added to the logits of its box.
            padding: true for pixels of no image, (B, Σ h·w).
            blocked: true where a query does not see another, (n, n).
        """
        states, moved = [], []
        for layer, mover in zip(self.layers, movers, strict=True):
            references = self.references(boxes, ratios)
            position = self.position(references, queries.dtype)
            queries = layer(queries, position, memory, references, sizes, padding, blocked)
            there = (mover(queries) + inverse_sigmoid(boxes)).sigmoid()
            states.append(self.norm(queries))
            moved.append(there)
            boxes = there.detach()
        return states, moved

    def references(self, boxes: Tensor, ratios: Tensor) -> Tensor:
        """Boxes of the images as boxes of the padded levels, (B, n, levels, 4)."""
        return boxes[:, :, None] * torch.cat([ratios, ratios], -1)[:, None]

    def position(self, references: Tensor, dtype: torch.dtype) -> Tensor:
        """What is added to queries where they look for one another and choose places, (B, n, dim)."""
        waves = box_positions(references[:, :, 0], self.norm.normalized_shape[0] // 2)
        return self.reference_head(waves.to(dtype))
