"""Factorised attention against its formula, head by head."""

import pytest
import torch

from convattn.ops.factorised_attention import factorised_attention, factorised_attention_reference
from toys import relative_error


def tokens(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64)


@pytest.mark.parametrize("num_heads", [1, 2, 8])
@pytest.mark.parametrize("keys", [7, 12])
def test_equals_the_reference(num_heads, keys):
    query, key, value = tokens(2, 7, 16), tokens(2, keys, 16), tokens(2, keys, 16)
    want = factorised_attention_reference(query, key, value, num_heads, 0.3)
    assert relative_error(factorised_attention(query, key, value, num_heads, 0.3), want) < 1e-12


def test_equal_keys_give_every_query_the_mean_value():
    """A head of one channel: the softmax is uniform, so what is left is scale · q · mean(v)."""
    query, value = tokens(2, 5, 4), tokens(2, 9, 4)
    got = factorised_attention(query, torch.ones(2, 9, 4, dtype=torch.float64), value, 4, 0.5)
    assert relative_error(got, 0.5 * query * value.mean(1, keepdim=True)) < 1e-12


def test_gradients():
    inputs = [tokens(1, 3, 4).requires_grad_() for _ in range(3)]
    assert torch.autograd.gradcheck(lambda q, k, v: factorised_attention(q, k, v, 2, 0.7), inputs)
