"""Attention at linear cost: keys and values are multiplied first, so no N × N map exists; a plain reference beside."""

import torch
from torch import Tensor

__all__ = ["factorised_attention", "factorised_attention_reference"]


def factorised_attention(query: Tensor, key: Tensor, value: Tensor, num_heads: int, scale: float) -> Tensor:
    """scale · q (softmax(k)ᵀ v) per head, the softmax over the tokens.

    Unlike in softmax attention the queries are not normalised: a result may lie outside the range of the values.

    Args:
        query: tokens (B, N, C); head h owns channels [h·C/heads, (h+1)·C/heads).
        key, value: tokens (B, M, C).
        num_heads: number of heads; divides C.
        scale: factor of the result.

    Returns:
        (B, N, C), heads concatenated in order.
    """
    query, weights, value = (
        x.unflatten(2, (num_heads, -1)).transpose(1, 2) for x in (query, key.softmax(dim=1), value)
    )
    context = weights.transpose(2, 3) @ value  # (B, heads, head_dim, head_dim): the scale costs least here
    return (query @ (context * scale)).transpose(1, 2).flatten(2)


def factorised_attention_reference(query: Tensor, key: Tensor, value: Tensor, num_heads: int, scale: float) -> Tensor:
    """The same value head by head, written as the formula; the oracle of the tests."""
    heads = []
    for q, k, v in zip(query.chunk(num_heads, 2), key.chunk(num_heads, 2), value.chunk(num_heads, 2), strict=True):
        heads.append(scale * q @ (k.softmax(dim=1).transpose(1, 2) @ v))
    return torch.cat(heads, dim=2)
