"""A stage of Sparse R-CNN: proposals look at one another, then each at its own region through kernels of its own.

Source: "Sparse R-CNN", Sun et al., CVPR 2021, arXiv 2011.12450, section 3.
"""

import math

import torch
import torch.nn.functional as F
from timm.layers import Mlp
from torch import Tensor, nn

__all__ = ["DynamicConv", "DynamicHead", "moved_boxes"]

_PRIOR = -math.log(99)  # bias of a class at first: one proposal in a hundred is of it
_MOST_LOG = abs(math.log(16 / 1000))  # of how much a side may grow or shrink
_DEVIATIONS = (0.5, 0.5, 1.0, 1.0)  # of the numbers that a box is moved by


class DynamicConv(nn.Module):
    """Two 1×1 convolutions over a region, with kernels that its proposal makes, then one vector of all positions.

    Args:
        dim: channels of proposals and regions.
        inner: channels between the two.
        positions: pixels of a region.
    """

    def __init__(self, dim: int, inner: int, positions: int):
        super().__init__()
        self.inner = inner
        self.kernels = nn.Linear(dim, 2 * dim * inner)
        self.norm1 = nn.LayerNorm(inner)
        self.norm2 = nn.LayerNorm(dim)
        self.out = nn.Linear(positions * dim, dim)
        self.norm3 = nn.LayerNorm(dim)

    def forward(self, proposals: Tensor, regions: Tensor) -> Tensor:
        """Proposals (n, dim) and their regions (n, dim, h, w) -> (n, dim)."""
        first, second = self.kernels(proposals).chunk(2, dim=1)
        x = regions.flatten(2).transpose(1, 2)
        x = F.relu(self.norm1(x @ first.unflatten(1, (-1, self.inner))))
        x = F.relu(self.norm2(x @ second.unflatten(1, (self.inner, -1))))
        return F.relu(self.norm3(self.out(x.flatten(1))))


class Tower(nn.Sequential):
    """Linear layers without bias, each normalised and rectified."""

    def __init__(self, dim: int, layers: int):
        super().__init__(
            *(part for _ in range(layers) for part in (nn.Linear(dim, dim, bias=False), nn.LayerNorm(dim), nn.ReLU()))
        )


class DynamicHead(nn.Module):
    """One stage: what a proposal is, and where its box should be.

    Args:
        dim: channels of proposals and regions.
        num_classes: classes of objects.
        heads: of the attention among proposals.
        hidden: channels between the two linear layers.
        inner: channels between the two dynamic convolutions.
        positions: pixels of a region.
    """

    def __init__(self, dim: int, num_classes: int, heads: int, hidden: int, inner: int, positions: int):
        super().__init__()
        if dim % heads:
            raise ValueError(f"{heads} heads do not divide {dim} channels; take a divisor of {dim}")
        self.attention = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.norm1 = nn.LayerNorm(dim)
        self.dynamic = DynamicConv(dim, inner, positions)
        self.norm2 = nn.LayerNorm(dim)
        self.ffn = Mlp(dim, hidden, act_layer=nn.ReLU)
        self.norm3 = nn.LayerNorm(dim)
        self.class_tower = Tower(dim, 1)
        self.box_tower = Tower(dim, 3)
        self.classifier = nn.Linear(dim, num_classes)
        self.mover = nn.Linear(dim, 4)
        for weight in self.parameters():
            if weight.ndim > 1:
                nn.init.xavier_uniform_(weight)
        nn.init.constant_(self.classifier.bias, _PRIOR)
        nn.init.zeros_(self.mover.bias)

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the layer that tells classes by a fresh one."""
        weight = self.classifier.weight
        with weight.device:
            self.classifier = nn.Linear(weight.shape[1], num_classes, dtype=weight.dtype)
        nn.init.xavier_uniform_(self.classifier.weight)
        nn.init.constant_(self.classifier.bias, _PRIOR)

    def forward(self, proposals: Tensor, regions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (B, n, classes), what the boxes are moved by (B, n, 4), and the proposals of the next stage.

        Args:
            proposals: (B, n, dim).
            regions: of their boxes, (B · n, dim, h, w).
        """
        attended, _ = self.attention(proposals, proposals, proposals, need_weights=False)
        x = self.norm1(proposals + attended)
        x = self.norm2(x + self.dynamic(x.flatten(0, 1), regions).view_as(x))
        x = self.norm3(x + self.ffn(x))
        return self.classifier(self.class_tower(x)), self.mover(self.box_tower(x)), x


def moved_boxes(boxes_xyxy: Tensor, deltas: Tensor) -> Tensor:
    """Boxes (…, 4) moved by (dx, dy, dw, dh) as a stage gives them, in float32 or better; never cut at the image."""
    exact = torch.promote_types(boxes_xyxy.dtype, torch.float32)
    boxes_xyxy, deltas = boxes_xyxy.to(exact), deltas.to(exact)
    deltas = deltas * deltas.new_tensor(_DEVIATIONS)
    size = boxes_xyxy[..., 2:] - boxes_xyxy[..., :2]
    centre = (boxes_xyxy[..., :2] + boxes_xyxy[..., 2:]) / 2 + size * deltas[..., :2]
    half = size * deltas[..., 2:].clamp(-_MOST_LOG, _MOST_LOG).exp() / 2
    return torch.cat([centre - half, centre + half], -1)
