"""Multi-head attention over tokens and over maps: one fused path, one plain reference beside it."""

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["map_attention", "map_tokens", "multi_head_attention", "multi_head_attention_reference"]


def multi_head_attention(query: Tensor, key: Tensor, value: Tensor, num_heads: int) -> Tensor:
    """softmax(q kᵀ / √head_dim) v per head, by torch's fused kernels.

    Every attention of the package goes through here, so there is one place to change how it is computed. The
    N × M matrix of weights is never held as a whole where a fused kernel exists (CPU and GPU both have one).

    Args:
        query: tokens (B, N, C); head h owns channels [h·C/heads, (h+1)·C/heads).
        key, value: tokens (B, M, C).
        num_heads: number of heads; divides C.

    Returns:
        (B, N, C), heads concatenated in order.
    """
    query, key, value = (x.unflatten(2, (num_heads, -1)).transpose(1, 2) for x in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)


def map_attention(query: Tensor, key: Tensor, value: Tensor, num_heads: int) -> Tensor:
    """`multi_head_attention` of the positions of a map, row by row, to tokens.

    Args:
        query: map (B, C, H, W).
        key, value: tokens (B, M, C), such as `map_tokens` makes of a map.
        num_heads: number of heads; divides C.

    Returns:
        (B, C, H, W) in channels-last memory.
    """
    mixed = multi_head_attention(map_tokens(query), key, value, num_heads)
    return mixed.unflatten(1, query.shape[2:]).permute(0, 3, 1, 2)


def map_tokens(x: Tensor) -> Tensor:
    """The positions of a map, row by row: (B, C, H, W) -> (B, H·W, C), a view of channels-last memory."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def multi_head_attention_reference(query: Tensor, key: Tensor, value: Tensor, num_heads: int) -> Tensor:
    """The same value head by head, written as the formula; the oracle of the tests."""
    heads = []
    for q, k, v in zip(query.chunk(num_heads, 2), key.chunk(num_heads, 2), value.chunk(num_heads, 2), strict=True):
        weights = (q @ k.transpose(1, 2) * q.shape[2] ** -0.5).softmax(dim=-1)
        heads.append(weights @ v)
    return torch.cat(heads, dim=2)
