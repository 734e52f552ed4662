"""Efficient multi-head self-attention (E-MHSA), the attention of Next-ViT: keys and values are averages of positions.

Paper: "Next-ViT: Next Generation Vision Transformer for Efficient Deployment in Realistic Industrial Scenarios", Li et
al., 2022, arXiv 2207.05501. Reference code: github.com/bytedance/Next-ViT (Apache-2.0); written from a description.

    x ─────────────────── q ─┐
    x ─ pool ─ norm ─┬─── k ─┼─ softmax(q kᵀ / √head_dim) v ─ proj ─ out
                     └─── v ─┘

The paper draws a pool over space behind the projections. The authors' code pools the flattened map, row by row, in
front of them and normalises the averages; its weights were trained so, and that is the default here.
"""

from copy import deepcopy

import torch.nn.functional as F
from timm.layers import register_notrace_module
from torch import Tensor, nn

from convattn.mixers.heads import check_head_dim
from convattn.ops.attention import map_attention, map_tokens
from convattn.ops.fold import fold_norms_linear
from convattn.ops.linear import Linear2d

__all__ = ["TOKEN_POOLS", "EfficientAttention", "TokenPool"]

TOKEN_POOLS = ("1d", "1d_full", "2d")


@register_notrace_module
class TokenPool(nn.Module):
    """Averages sr² positions to one.

    Args:
        sr_ratio: sr, 1 or more.
        kind: "1d" averages runs of sr² positions in row order, which wrap from one row into the next, and leaves out
            the last N mod sr² positions: the authors' arithmetic. "1d_full" averages those too, as a shorter run.
            "2d" averages windows of sr × sr positions, cut at the right and lower edge.

    Raises:
        ValueError: for another kind or an `sr_ratio` below 1.
    """

    def __init__(self, sr_ratio: int, kind: str = "1d"):
        super().__init__()
        if sr_ratio < 1:
            raise ValueError(f"sr_ratio {sr_ratio} must be 1 or more")
        if kind not in TOKEN_POOLS:
            raise ValueError(f"token_pool {kind!r} is unknown; choose one of {', '.join(TOKEN_POOLS)}")
        self.sr_ratio = sr_ratio
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, 1, M), M = ⌊H·W / sr²⌋ ("1d") or ⌈H·W / sr²⌉; for "2d" (B, C, ⌈H/sr⌉, ⌈W/sr⌉).

        Raises:
            ValueError: for "1d", if the map has fewer than sr² positions.
        """
        if self.kind == "2d":
            return F.avg_pool2d(x, self.sr_ratio, ceil_mode=True, count_include_pad=False)
        height, width = x.shape[2:]
        run = self.sr_ratio**2
        if self.kind == "1d" and height * width < run:
            raise ValueError(
                f"a map of {height} x {width} positions is smaller than the run of sr² = {run} that token_pool '1d' "
                f"averages; give it {run} positions or more, or choose token_pool '1d_full' or '2d'"
            )
        row = x.flatten(2).unsqueeze(2)  # a view in channels-last memory as in any other
        return F.avg_pool2d(row, (1, run), ceil_mode=self.kind == "1d_full", count_include_pad=False)

    def extra_repr(self) -> str:
        return f"{self.sr_ratio}, {self.kind!r}"


class EfficientAttention(nn.Module):
    """out = proj(softmax(q kᵀ / √head_dim) v) per head, keys and values from normalised averages of sr² positions.

    With an `sr_ratio` of 1 it is ordinary self-attention, without pool and norm. There is no position code, but with
    "1d" the order of the positions decides which are averaged together.

    Args:
        dim: channels C; a multiple of `head_dim`.
        head_dim: channels of a head (32 in every released model).
        sr_ratio: a key stands for sr² positions.
        token_pool: how positions are averaged, see `TokenPool`. The default leaves the last N mod sr² of them out of
            keys and values, as the authors' code does.
        qkv_bias: bias of the projections to queries, keys and values.
        norm_layer: called with C, for the averages; a batch norm folds away in the inference form.

    Raises:
        ValueError: if `head_dim` does not divide `dim`, or `TokenPool` refuses its options.
    """

    def __init__(
        self,
        dim: int,
        *,
        head_dim: int = 32,
        sr_ratio: int = 1,
        token_pool: str = "1d",
        qkv_bias: bool = True,
        norm_layer: type[nn.Module] = nn.BatchNorm2d,
    ):
        super().__init__()
        check_head_dim(dim, head_dim)
        pool = TokenPool(sr_ratio, token_pool)
        self.num_heads = dim // head_dim
        self.q = Linear2d(dim, dim, bias=qkv_bias)
        self.k = Linear2d(dim, dim, bias=qkv_bias)
        self.v = Linear2d(dim, dim, bias=qkv_bias)
        self.proj = Linear2d(dim, dim)
        self.pool = pool if sr_ratio > 1 else nn.Identity()
        self.norm = norm_layer(dim) if sr_ratio > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W).

        Raises:
            ValueError: if the pool cannot take a map of this size.
        """
        pooled = self.norm(self.pool(x))
        key, value = map_tokens(self.k(pooled)), map_tokens(self.v(pooled))
        return self.proj(map_attention(self.q(x), key, value, self.num_heads))

    def fused(self, pre_norm: nn.Module | None = None) -> nn.Module:
        """The inference form: keys and values from one product, batch norms folded into the projections.

        Args:
            pre_norm: a batch norm in front of this block, to be folded too: an average of positions commutes with a
                scale and shift of every channel.
        """
        return FusedEfficientAttention(self, pre_norm)


class FusedEfficientAttention(nn.Module):
    """Inference form of `EfficientAttention`: one linear layer for queries, one for keys and values."""

    def __init__(self, block: EfficientAttention, pre_norm: nn.Module | None = None):
        super().__init__()
        before = [] if pre_norm is None else [pre_norm]
        folds = isinstance(block.norm, nn.BatchNorm2d)
        assert folds or not before or isinstance(block.norm, nn.Identity), "a norm that stays keeps the one before it"
        self.num_heads = block.num_heads
        self.query = fold_norms_linear(before, [block.q])
        self.key_value = fold_norms_linear([*before, block.norm] if folds else before, [block.k, block.v])
        self.pool = block.pool
        self.norm = nn.Identity() if folds else deepcopy(block.norm)
        self.proj = fold_norms_linear([], [block.proj])

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        key, value = map_tokens(self.key_value(self.norm(self.pool(x)))).chunk(2, 2)
        return self.proj(map_attention(self.query(x), key, value, self.num_heads))
