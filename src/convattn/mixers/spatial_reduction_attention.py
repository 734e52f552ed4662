"""Spatial-reduction attention, the attention of PVT: every position sees the whole map, at a lower resolution.

Papers: "Pyramid Vision Transformer", Wang et al., 2021, arXiv 2102.12122; "PVT v2", arXiv 2106.13797.

    x ───────────────────────────────────── q ─┐
    x ─ convolution sr × sr /sr ─ norm ─┬── k ─┼─ softmax(q kᵀ / √head_dim) v ─ proj ─ out
                                        └── v ─┘

It is the control of GroupMixFormer's table 7, which puts it in the place of group-mix attention.
"""

from timm.layers import register_notrace_module
from timm.models.pvt_v2 import Attention
from torch import Tensor, nn

from convattn.mixers.heads import check_head_dim

__all__ = ["SpatialReductionAttention"]


@register_notrace_module
class SpatialReductionAttention(nn.Module):
    """out = proj(softmax(q kᵀ / √head_dim) v) per head, keys and values from a learnt reduction of the map.

    timm's attention of PVTv2, over maps. The last rows and columns that fill no field of sr × sr are left out of keys
    and values, as there.

    Args:
        dim: channels C; a multiple of `head_dim`.
        head_dim: channels of a head.
        sr_ratio: a key stands for sr × sr positions; with 1 it is ordinary self-attention.

    Raises:
        ValueError: if `head_dim` does not divide `dim`, or `sr_ratio` is below 1.
    """

    def __init__(self, dim: int, *, head_dim: int = 32, sr_ratio: int = 1):
        super().__init__()
        check_head_dim(dim, head_dim)
        if sr_ratio < 1:
            raise ValueError(f"sr_ratio {sr_ratio} must be 1 or more")
        self.sr_ratio = sr_ratio
        self.attention = Attention(dim, dim // head_dim, sr_ratio=sr_ratio)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W).

        Raises:
            ValueError: if a side of the map is shorter than sr.
        """
        height, width = x.shape[2:]
        if height < self.sr_ratio or width < self.sr_ratio:
            raise ValueError(
                f"a map of {height} x {width} positions is smaller than one field of sr_ratio {self.sr_ratio}; "
                f"give it {self.sr_ratio} x {self.sr_ratio} positions or more, or a smaller sr_ratio"
            )
        tokens = self.attention(x.flatten(2).transpose(1, 2), [height, width])
        return tokens.transpose(1, 2).unflatten(2, (height, width))
