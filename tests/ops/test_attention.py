import pytest
import torch

from convattn.ops.attention import map_attention, map_tokens, multi_head_attention, multi_head_attention_reference
from toys import relative_error


@pytest.mark.parametrize("num_heads", [1, 2, 6])
@pytest.mark.parametrize(("queries", "keys"), [(7, 7), (7, 3), (1, 5)])
def test_fused_attention_equals_the_formula(num_heads, queries, keys):
    query = torch.randn(2, queries, 12, dtype=torch.float64)
    key, value = torch.randn(2, 2, keys, 12, dtype=torch.float64)
    want = multi_head_attention_reference(query, key, value, num_heads)
    assert relative_error(multi_head_attention(query, key, value, num_heads), want) < 1e-12


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_attention_of_a_map_is_that_of_its_positions_row_by_row(memory_format):
    query, other = torch.randn(2, 2, 6, 3, 4).unbind()
    got = map_attention(
        query.contiguous(memory_format=memory_format), map_tokens(other), map_tokens(-other), num_heads=3
    )
    query, other = (torch.stack([x[:, :, i, j] for i in range(3) for j in range(4)], 1) for x in (query, other))
    want = multi_head_attention(query, other, -other, num_heads=3)
    assert got.is_contiguous(memory_format=torch.channels_last)
    for i in range(3):
        for j in range(4):
            assert relative_error(got[:, :, i, j], want[:, 4 * i + j]) < 1e-6


def test_one_key_is_copied_to_every_query():
    value = torch.randn(2, 1, 8)
    got = multi_head_attention(torch.randn(2, 5, 8), torch.randn(2, 1, 8), value, num_heads=2)
    assert torch.equal(got, value.expand(2, 5, 8))


def test_gradients():
    tokens = [torch.randn(1, 3, 4, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    assert torch.autograd.gradcheck(lambda q, k, v: multi_head_attention(q, k, v, 2), tokens)
