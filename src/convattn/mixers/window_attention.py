"""Self-attention within windows, the attention of Swin: a position sees the w × w positions of its window.

Paper: "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows", Liu et al., 2021, arXiv 2103.14030.

    x ─ [shift by w/2] ─ windows of w × w ─ proj(softmax(q kᵀ / √head_dim + bias) v) ─ [shift back] ─ out

It is the control of GroupMixFormer's table 7, which puts it in the place of group-mix attention.
"""

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import register_notrace_module
from timm.models.swin_transformer import WindowAttention as TokenWindowAttention
from timm.models.swin_transformer import window_partition, window_reverse
from torch import Tensor, nn

from convattn.mixers.heads import check_head_dim

__all__ = ["WindowAttention"]


@register_notrace_module
class WindowAttention(nn.Module):
    """out = proj(softmax(q kᵀ / √head_dim + bias) v) per head and window; the bias is learnt for each offset.

    Any size of map: windows at the lower and right edge are cut, so no position sees one that is not there. (timm's
    Swin lets positions see the zeros that fill these windows; where the window divides the map, values are the same.)

    Args:
        dim: channels C; a multiple of `head_dim`.
        head_dim: channels of a head.
        window_size: side w of a window, in positions.
        shift: whether windows lie w/2 positions further down and right, as in every second block of Swin; those that
            the edges then cut stay apart.

    Raises:
        ValueError: if `head_dim` does not divide `dim`, or `window_size` is below 1.
    """

    def __init__(self, dim: int, *, head_dim: int = 32, window_size: int = 7, shift: bool = False):
        super().__init__()
        check_head_dim(dim, head_dim)
        if window_size < 1:
            raise ValueError(f"window_size {window_size} must be 1 or more")
        self.window_size = (window_size, window_size)
        self.shift = window_size // 2 if shift else 0
        self.attention = TokenWindowAttention(dim, dim // head_dim, window_size=window_size)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        height, width = x.shape[2:]
        side, shift = self.window_size[0], self.shift
        filled = F.pad(x.permute(0, 2, 3, 1), (0, 0, 0, -width % side, 0, -height % side))
        full_height, full_width = filled.shape[1:3]
        rows = self._regions(height, full_height, x)
        columns = self._regions(width, full_width, x)
        regions = (3 * rows[:, None] + columns).view(1, full_height, full_width, 1)

        windows, regions = (
            window_partition(t.roll((-shift, -shift), (1, 2)), self.window_size).flatten(1, 2)
            for t in (filled, regions)
        )
        apart = regions != regions.transpose(1, 2)
        mask = torch.zeros_like(apart, dtype=x.dtype).masked_fill(apart, float("-inf"))
        mixed = self.attention(windows, mask).unflatten(1, self.window_size)

        merged: Any = window_reverse(mixed, self.window_size, full_height, full_width)
        return merged.roll((shift, shift), (1, 2))[:, :height, :width].permute(0, 3, 1, 2)

    def _regions(self, size: int, full_size: int, like: Tensor) -> Tensor:
        """Along one side, which positions may see one another: 0, 1 (moved to the far edge), 2 (not in the map)."""
        position = torch.arange(full_size, device=like.device)
        return (position < self.shift).long().masked_fill(position >= size, 2)
